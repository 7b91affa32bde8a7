"""REINFORCE++: PPO without a critic, its baseline the mean over the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from engine.algorithms.base import Outcomes
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import ClippedPolicyGradient, KlIn
from engine.algorithms.returns import at_last_action, returns_to_go
from engine.algorithms.settings import share_of_one
from workers.records import AlgorithmState, Batch, Credit, ModelOutputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReinforcePP(ClippedPolicyGradient):
    """REINFORCE++ (2501.03262, Eqs. 8-10): a token is worth the reward still to come, normalised over the batch.

    The reward of a token is minus its divergence from the reference; the last one adds the outcome's. One response a
    prompt is enough, because all responses of the batch are the baseline.
    """

    credits_tokens: ClassVar[bool] = True

    whiten: bool = True
    kl_coef: float = 0.01
    kl_in: KlIn = KlIn.REWARD
    kl_estimator: KlEstimator = KlEstimator.K1
    gamma: float = 1.0
    """Discount of the reward per token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share_of_one(self, "gamma")

    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        return outcomes.score_B

    def token_credit(self, batch: Batch, outputs: ModelOutputs, advantage_B: Tensor, state: AlgorithmState) -> Credit:
        reward_BT = at_last_action(batch.reward_B, batch.mask_BT) - state.kl_coef * self.divergence(batch, outputs)
        returns_BT = returns_to_go(reward_BT, batch.mask_BT, gamma=self.gamma)
        return Credit(advantages_BT=returns_BT, returns_BT=returns_BT)
