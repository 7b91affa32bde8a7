"""GRPO: a response is worth how far it is above its siblings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.base import Outcomes
from engine.algorithms.groups import Scale, Singleton, above_siblings, batch_std, sibling_std
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import ClippedPolicyGradient
from engine.algorithms.settings import InvalidSetting, at_least_zero


@dataclass(frozen=True, kw_only=True)
class GRPO(ClippedPolicyGradient):
    """Group Relative Policy Optimization (DeepSeekMath, 2402.03300, Eq. 3; outcome supervision).

    An advantage of +1 says: one standard deviation better than the other answers to the same prompt. The group stands
    in for a critic, so a prompt that all siblings answer equally well teaches nothing. Every token of a response shares
    its response's advantage.
    """

    min_group_size: ClassVar[int] = 2

    aggregation: Aggregation = Aggregation.SEQ_MEAN_TOKEN_MEAN
    kl_coef: float = 0.04
    kl_estimator: KlEstimator = KlEstimator.K3
    scale: Scale = Scale.GROUP
    """Whether advantages are in standard deviations, and of what."""
    std_ddof: int = 1
    """1 divides the variance by one sibling less, 0 by all of them."""
    std_eps: float = 1e-6
    """Added to the standard deviation."""
    singleton: Singleton = Singleton.ZERO
    """What a response is worth whose siblings could not be judged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero(self, "std_eps")
        if self.std_ddof not in (0, 1):
            raise InvalidSetting(f"std_ddof is {self.std_ddof}: choose 0 or 1")

    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        score_B, group_B = outcomes.score_B, outcomes.group_B
        above_B = above_siblings(score_B, group_B, singleton=self.singleton)
        match self.scale:
            case Scale.GROUP:
                return above_B / (sibling_std(score_B, group_B, ddof=self.std_ddof) + self.std_eps)
            case Scale.BATCH:
                return above_B / (batch_std(score_B, ddof=self.std_ddof) + self.std_eps)
            case Scale.NONE:
                return above_B
