"""GRPO: a response is worth how far it is above its siblings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.algorithms.aggregation import Aggregation, aggregate, token_mean
from engine.algorithms.base import Algorithm, InvalidSetting, Outcomes
from engine.algorithms.clipping import Clip, clipped_surrogate
from engine.algorithms.groups import Singleton, above_siblings, sibling_std
from engine.algorithms.kl import KlEstimator, kl_estimate
from workers.records import AlgorithmState, Experience, Loss, Needs, TokenLogprobs, Totals


@dataclass(frozen=True, kw_only=True)
class GRPO(Algorithm):
    """Group Relative Policy Optimization (DeepSeekMath, 2402.03300, Eq. 3; outcome supervision).

    An advantage of +1 says: one standard deviation better than the other answers to the same prompt. The group stands
    in for a critic, so a prompt that all siblings answer equally well teaches nothing. Every token of a response shares
    its response's advantage. Without the division by the spread, and with `SEQ_MEAN_TOKEN_SUM_NORM`, this is
    Dr. GRPO (2503.20783): the advantage is then in units of score.
    """

    min_group_size: ClassVar[int] = 2

    clip_low: float = 0.2
    """A token to be made less likely stops teaching when its probability fell by this share."""
    clip_high: float = 0.2
    """A token to be made more likely stops teaching when its probability rose by this share."""
    kl_coef: float = 0.04
    """Weight of the divergence from the reference in the loss; 0 needs no reference model."""
    kl_estimator: KlEstimator = KlEstimator.K3
    """How the divergence is estimated. K2 has the gradient of KL(policy || reference), K3 that of the reverse."""
    aggregation: Aggregation = Aggregation.SEQ_MEAN_TOKEN_MEAN
    """Whether sequences or tokens weigh the same."""
    divide_by_std: bool = True
    """Whether advantages are in standard deviations of the group, or in units of score."""
    std_eps: float = 1e-6
    """Added to the standard deviation."""
    singleton: Singleton = Singleton.ZERO
    """What a response is worth whose siblings could not be judged."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1:
            raise InvalidSetting(f"clip_low is {self.clip_low}: the ratio's floor is 1 - clip_low; choose from 0 to 1")
        for name in ("clip_high", "kl_coef", "std_eps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidSetting(f"{name} is {value}: it must be a finite number, 0 or more")
        if self.kl_coef > 0 and self.kl_estimator is KlEstimator.K1:
            raise InvalidSetting(
                "kl_estimator is K1: as a loss its gradient is zero in expectation, so it holds the policy nowhere; "
                "choose K2 (the gradient of KL(policy || reference)) or K3, or set kl_coef to 0"
            )

    @property
    def needs(self) -> Needs:
        return Needs(reference=self.kl_coef > 0)

    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        above_B = above_siblings(outcomes.score_B, outcomes.group_B, singleton=self.singleton)
        if not self.divide_by_std:
            return above_B
        return above_B / (sibling_std(outcomes.score_B, outcomes.group_B) + self.std_eps)

    def policy_loss(self, policy: TokenLogprobs, experience: Experience, totals: Totals, state: AlgorithmState) -> Loss:
        mask_BT = experience.batch.mask_BT
        surrogate = clipped_surrogate(policy, experience, totals, Clip(low=self.clip_low, high=self.clip_high))
        value = aggregate(surrogate.loss_BT, mask_BT, totals, self.aggregation)
        metrics = {"policy_loss": value.detach(), **surrogate.metrics}
        if not self.needs.reference:
            return Loss(value=value, metrics=metrics)
        reference_BT = experience.outputs.reference_logprobs_BT
        kl_BT = kl_estimate(policy.logprobs_BT, reference_BT, mask_BT, self.kl_estimator)
        metrics["kl"] = token_mean(kl_BT, mask_BT, totals)
        return Loss(value=value + state.kl_coef * aggregate(kl_BT, mask_BT, totals, self.aggregation), metrics=metrics)

    def initial_state(self) -> AlgorithmState:
        return AlgorithmState(kl_coef=self.kl_coef)
