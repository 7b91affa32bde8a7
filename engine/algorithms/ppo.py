"""PPO: a critic tells what was to be expected before each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from engine.algorithms.aggregation import aggregate, token_mean
from engine.algorithms.base import Outcomes
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import ClippedPolicyGradient, KlIn
from engine.algorithms.returns import at_last_action, generalised_advantages
from engine.algorithms.settings import at_least_zero, share_of_one
from workers.records import AlgorithmState, Batch, Credit, Experience, Loss, ModelOutputs, Needs, Totals

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PPO(ClippedPolicyGradient):
    """Proximal Policy Optimization (1707.06347) with generalised advantages (1506.02438), as RLHF uses it (2203.02155).

    The reward of a token is minus its divergence from the reference; the last one adds the outcome's. A token is worth
    how much better things went than the critic expected. Policy and critic learn side by side.
    """

    credits_tokens: ClassVar[bool] = True

    whiten: bool = True
    kl_coef: float = 1e-3
    kl_in: KlIn = KlIn.REWARD
    kl_estimator: KlEstimator = KlEstimator.K1
    gamma: float = 1.0
    """Discount of the reward per token."""
    lam: float = 0.95
    """GAE's lambda: 1 trusts the outcome alone, 0 the critic alone."""
    critic_lam: float = 0.95
    """The same for what the critic learns: 1 is the reward that did come (VAPO, 2504.05118)."""
    value_clip: float = 0.5
    """How far a value may move from its old one before it stops learning; 0: any distance."""
    critic_warmup_steps: int = 0
    """First steps in which the critic learns alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share_of_one(self, "gamma", "lam", "critic_lam")
        at_least_zero(self, "value_clip", "critic_warmup_steps")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, critic=True)

    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        return outcomes.score_B

    def token_credit(self, batch: Batch, outputs: ModelOutputs, advantage_B: Tensor, state: AlgorithmState) -> Credit:
        mask_BT, values_BT = batch.mask_BT, outputs.values_BT
        reward_BT = at_last_action(batch.reward_B, mask_BT) - state.kl_coef * self.divergence(batch, outputs)
        advantages_BT, errors_BT = (
            generalised_advantages(reward_BT, values_BT, mask_BT, gamma=self.gamma, lam=lam)
            for lam in (self.lam, self.critic_lam)
        )
        return Credit(advantages_BT=advantages_BT, returns_BT=(errors_BT + values_BT).masked_fill(~mask_BT, 0.0))

    def value_loss(self, values_BT: Tensor, experience: Experience, totals: Totals) -> Loss:
        """Half the squared error, of the clipped value where that is worse."""
        batch, mask_BT = experience.batch, experience.batch.mask_BT
        new_BT = values_BT.masked_fill(~mask_BT, 0.0)
        old_BT = experience.outputs.values_BT.masked_fill(~mask_BT, 0.0)
        returns_BT = experience.credit.returns_BT.masked_fill(~mask_BT, 0.0)
        error_BT = (new_BT - returns_BT).square()
        held_BT = old_BT + (new_BT - old_BT).clamp(-self.value_clip, self.value_clip) if self.value_clip else new_BT
        held_error_BT = (held_BT - returns_BT).square()
        value = aggregate(error_BT.maximum(held_error_BT) / 2, batch, totals, self.aggregation)
        surprise_BT = returns_BT - old_BT
        metrics_BT: Mapping[str, Tensor] = {
            "value_clipped": (held_error_BT > error_BT).to(error_BT.dtype),
            "return": returns_BT,
            "return_squared": returns_BT.square(),
            "surprise": surprise_BT,
            "surprise_squared": surprise_BT.square(),
        }
        return Loss(
            value=value,
            metrics={
                "value_loss": value.detach(),
                **{name: token_mean(metric_BT, batch, totals) for name, metric_BT in metrics_BT.items()},
            },
        )

    def trains_policy(self, step: int) -> bool:
        return step >= self.critic_warmup_steps
