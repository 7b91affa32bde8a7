"""RLOO: REINFORCE with the other siblings' mean as baseline."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np

from engine.algorithms.base import Outcomes
from engine.algorithms.clipping import LOG_RATIO_LIMIT, TokenLoss, clipped, ratio_of
from engine.algorithms.groups import Singleton, above_others
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import ClippedPolicyGradient, KlIn
from workers.records import Experience, TokenLogprobs


class RatioOf(Enum):
    """What the clipped ratio compares."""

    TOKEN = "token"
    """The probability of each token."""
    SEQUENCE = "sequence"
    """The probability of the whole response; wants `aggregation=seq-mean-token-mean`."""


@dataclass(frozen=True, kw_only=True)
class RLOO(ClippedPolicyGradient):
    """REINFORCE leave-one-out (2402.14740): r_i - mean of the other siblings' r.

    The baseline does not depend on the response, so the gradient is unbiased; with k siblings the advantage is k/(k-1)
    times the distance from the group's mean. The divergence from the reference is part of the score.
    """

    min_group_size: ClassVar[int] = 2

    kl_coef: float = 0.03
    kl_in: KlIn = KlIn.REWARD
    kl_estimator: KlEstimator = KlEstimator.K1
    ratio: RatioOf = RatioOf.TOKEN
    singleton: Singleton = Singleton.ZERO
    """What a response is worth whose siblings could not be judged."""

    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        return above_others(outcomes.score_B, outcomes.group_B, singleton=self.singleton)

    def token_loss(self, policy: TokenLogprobs, past: Experience) -> TokenLoss:
        if self.ratio is RatioOf.TOKEN:
            return super().token_loss(policy, past)
        ratio = ratio_of(policy, past)
        whole_B1 = ratio.log_ratio_BT.sum(dim=-1, keepdim=True).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return clipped(whole_B1.expand(ratio.mask_BT.shape), ratio, self.clip)
