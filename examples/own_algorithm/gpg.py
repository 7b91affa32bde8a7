"""GPG: policy gradient without a surrogate, and without counting groups that say nothing.

An algorithm of one's own is a dataclass: its fields are settings (`algo.rescale=false`), and what it does not say is as
for its base. `PolicyGradient` brings aggregation, rollout correction, a reference and entropy where they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.algorithms.base import Outcomes
from engine.algorithms.clipping import TokenLoss
from engine.algorithms.groups import Singleton, above_siblings, sibling_rows
from engine.algorithms.policy_gradient import PolicyGradient
from workers.records import Experience, TokenLogprobs


@dataclass(frozen=True, kw_only=True)
class GPG(PolicyGradient):
    """Group Policy Gradient (2504.02546): -alpha (r - mean of its group) log pi, the mean over all tokens.

    Groups whose siblings all scored the same have no gradient, but weigh in the mean. With M of B groups like that,
    alpha = B / (B - M) makes up for them.
    """

    min_group_size: ClassVar[int] = 2

    rescale: bool = True
    """Whether to make up for groups without a gradient."""

    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        """[B] float64: what each response of the whole batch is worth."""
        above_B = above_siblings(outcomes.score_B, outcomes.group_B, singleton=Singleton.ZERO)
        groups = sibling_rows(outcomes.group_B)
        teaching = sum(bool(above_B[rows].any()) for rows in groups)
        return above_B * len(groups) / teaching if self.rescale and teaching else above_B

    def token_loss(self, policy: TokenLogprobs, past: Experience) -> TokenLoss:
        """[B, T], 0 at masked positions, whatever is there."""
        mask_BT = past.batch.mask_BT
        logprobs_BT = policy.logprobs_BT.masked_fill(~mask_BT, 0.0)
        advantages_BT = past.credit.advantages_BT.masked_fill(~mask_BT, 0.0)
        return TokenLoss(loss_BT=-advantages_BT * logprobs_BT, metrics_BT={})
