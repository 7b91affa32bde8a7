"""What all shipped algorithms share around their own loss per token: weights, divergence, entropy, aggregation.

    loss = aggregate(w * token_loss) + kl_coef * aggregate(k(pi, ref)) - entropy_coef * aggregate(H)

with w the rollout correction, and the divergence either here or, with `kl_in=reward`, in the reward.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from engine.algorithms.aggregation import Aggregation, aggregate, token_mean
from engine.algorithms.base import Algorithm
from engine.algorithms.clipping import Clip, TokenLoss, clipped_surrogate
from engine.algorithms.correction import Correction, ImportanceWeight
from engine.algorithms.kl import KlEstimator, adapted_coefficient, kl_estimate
from engine.algorithms.settings import InvalidSetting, at_least_zero
from workers.records import AlgorithmState, Batch, Experience, Loss, ModelOutputs, Needs, TokenLogprobs, Totals

if TYPE_CHECKING:
    from torch import Tensor


class KlIn(Enum):
    """Where the divergence from the reference is charged."""

    LOSS = "loss"
    """As a term of its own, with a gradient."""
    REWARD = "reward"
    """Taken off the reward of each token, of the policy at the start of the step."""


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Algorithm):
    """A loss per token, corrected, aggregated, and held near a reference."""

    aggregation: Aggregation = Aggregation.TOKEN_MEAN
    """Whether tokens, sequences or prompts weigh the same."""
    kl_coef: float = 0.0
    """Weight of the divergence from the reference; 0 needs no reference model."""
    kl_in: KlIn = KlIn.LOSS
    kl_estimator: KlEstimator = KlEstimator.K2
    """How the divergence is estimated. As a loss K2 has the gradient of KL(policy || reference), K3 that of the
    reverse, K1 none."""
    kl_target: float = 0.0
    """With kl_in=reward: the coefficient is adapted to bring the divergence here (1909.08593, section 2.2); 0 leaves
    it fixed."""
    kl_horizon: float = 10_000.0
    """Responses over which the coefficient is adapted."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    correction: Correction = field(default_factory=Correction)
    """For tokens that the rollout engine sampled with other probabilities than the trainer's."""

    def __post_init__(self) -> None:
        at_least_zero(self, "kl_coef", "kl_target", "entropy_coef")
        if not self.kl_horizon > 0:
            raise InvalidSetting(f"kl_horizon is {self.kl_horizon}: it must be above 0")
        if self.kl_target and not self.charges_reward:
            raise InvalidSetting(
                f"kl_target is {self.kl_target}, and only the weight of a divergence in the reward is adapted: set "
                "kl_in=reward and kl_coef above 0, or kl_target to 0"
            )
        if self.whiten_ddof not in (0, 1):
            raise InvalidSetting(f"whiten_ddof is {self.whiten_ddof}: choose 0 or 1")
        if self.kl_coef > 0 and self.kl_in is KlIn.LOSS and self.kl_estimator is KlEstimator.K1:
            raise InvalidSetting(
                "kl_estimator is K1: as a loss its gradient is zero in expectation, so it holds the policy nowhere; "
                "choose K2 (the gradient of KL(policy || reference)) or K3, set kl_in=reward, or set kl_coef to 0"
            )
        if self.correction.recounts and self.aggregation is Aggregation.PROMPT_MEAN:
            raise InvalidSetting(
                "correction.denominator is kept and aggregation is prompt-mean: the kept tokens of a prompt lie on "
                "several ranks and are not counted; set denominator to original, or choose another aggregation"
            )

    @property
    def needs(self) -> Needs:
        return Needs(
            reference=self.kl_coef > 0,
            old_logprobs=self.charges_reward or self.correction.recounts,
            recount=self.correction.recounts,
            entropy_gradient=self.entropy_coef > 0,
        )

    @property
    def charges_reward(self) -> bool:
        return self.kl_coef > 0 and self.kl_in is KlIn.REWARD

    @property
    def corrects(self) -> bool:
        return self.correction.weight is not ImportanceWeight.NONE

    @abstractmethod
    def token_loss(self, policy: TokenLogprobs, past: Experience) -> TokenLoss:
        """The algorithm's own loss of each action token."""

    def policy_loss(self, policy: TokenLogprobs, experience: Experience, totals: Totals, state: AlgorithmState) -> Loss:
        batch = experience.batch
        own = self.token_loss(policy, experience)
        corrected = self.correction.of(policy, experience)
        value = aggregate(own.loss_BT * corrected.weight_BT, batch, totals, self.aggregation)
        metrics_BT = {**own.metrics_BT, **corrected.metrics_BT, "entropy": policy.entropy_BT}
        metrics = {"policy_loss": value.detach()}
        if self.entropy_coef > 0:
            value = value - self.entropy_coef * aggregate(policy.entropy_BT, batch, totals, self.aggregation)
        if self.kl_coef > 0:
            reference_BT = experience.outputs.reference_logprobs_BT
            kl_BT = kl_estimate(policy.logprobs_BT, reference_BT, batch.mask_BT, self.kl_estimator)
            metrics_BT["kl"] = kl_BT
            if self.kl_in is KlIn.LOSS:
                value = value + state.kl_coef * aggregate(kl_BT, batch, totals, self.aggregation)
        metrics |= {name: token_mean(value_BT, batch, totals) for name, value_BT in metrics_BT.items()}
        return Loss(value=value, metrics=metrics)

    def divergence(self, batch: Batch, outputs: ModelOutputs) -> Tensor:
        if not self.charges_reward:
            return super().divergence(batch, outputs)
        return kl_estimate(
            outputs.old_logprobs_BT, outputs.reference_logprobs_BT, batch.mask_BT, self.kl_estimator
        ).detach()

    def counted(self, experience: Experience) -> Tensor:
        return self.correction.kept(experience) if self.correction.recounts else super().counted(experience)

    def initial_state(self) -> AlgorithmState:
        return AlgorithmState(kl_coef=self.kl_coef)

    def next_state(self, state: AlgorithmState, metrics: Mapping[str, float]) -> AlgorithmState:
        # A step whose divergence is no number is skipped, and must not spoil the coefficient of those that follow.
        if not self.kl_target or not math.isfinite(metrics["reward_kl"]):
            return state
        return replace(
            state,
            kl_coef=adapted_coefficient(
                state.kl_coef,
                divergence=metrics["reward_kl"],
                responses=metrics["responses"],
                target=self.kl_target,
                horizon=self.kl_horizon,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient(PolicyGradient):
    """The loss per token is PPO's clipped surrogate."""

    clip_low: float = 0.2
    """A token to be made less likely stops teaching when its probability fell by this share."""
    clip_high: float = 0.2
    """A token to be made more likely stops teaching when its probability rose by this share."""
    clip_dual: float = 0.0
    """Ceiling of the ratio for tokens to be made less likely (dual clip, 1912.09729 Eq. 5); 0 leaves it open."""
    ratio_cap: float = 0.0
    """Ceiling of the ratio before anything else, whatever the advantage (INTELLECT-2's delta, 2505.07291); 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.clip_low <= 1:
            raise InvalidSetting(f"clip_low is {self.clip_low}: the ratio's floor is 1 - clip_low; choose from 0 to 1")
        at_least_zero(self, "clip_high", "clip_dual", "ratio_cap")
        if 0 < self.clip_dual <= 1:
            raise InvalidSetting(f"clip_dual is {self.clip_dual}: a ratio of 1 must pass, so it is above 1; 0 is off")
        if 0 < self.ratio_cap < 1 + self.clip_high:
            raise InvalidSetting(f"ratio_cap is {self.ratio_cap}, below 1 + clip_high, which would then never act")

    @property
    def clip(self) -> Clip:
        return Clip(low=self.clip_low, high=self.clip_high, dual=self.clip_dual, ratio_cap=self.ratio_cap)

    def token_loss(self, policy: TokenLogprobs, past: Experience) -> TokenLoss:
        return clipped_surrogate(policy, past, self.clip)
