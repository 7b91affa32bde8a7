"""GSPO: the ratio, and the clipping, of whole responses."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engine.algorithms.clipping import TokenLoss, clipped, ratio_of
from engine.algorithms.correction import Correction, ImportanceWeight
from engine.algorithms.grpo import GRPO
from workers.records import Experience, TokenLogprobs

MEAN_LOG_RATIO_LIMIT = 10.0
"""exp(10) is 2e4: further apart a response's ratio says nothing."""


class Form(Enum):
    """Through what the gradient flows."""

    SEQUENCE = "sequence"
    """The ratio of the response (Eq. 5)."""
    TOKEN = "token"
    """The token's own probability, times the response's ratio held fixed (Eqs. 13-14): the same gradient where all
    tokens of a response share their advantage, and defined where they do not."""


def _whole_responses() -> Correction:
    """Responses that the engine sampled from too different a policy are left out; no token is weighed by itself."""
    return Correction(weight=ImportanceWeight.NONE, geometric_low=0.9, geometric_high=1.1)


@dataclass(frozen=True, kw_only=True)
class GSPO(GRPO):
    """Group Sequence Policy Optimization (2507.18071, Eq. 5): a response is kept or clipped as a whole.

    Its ratio is the geometric mean of its tokens' ratios, s_i = exp(mean_t log-ratio), so bounds are two orders of
    magnitude tighter than GRPO's. Wants `aggregation=seq-mean-token-mean`.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    kl_coef: float = 0.0
    correction: Correction = field(default_factory=_whole_responses)
    form: Form = Form.SEQUENCE

    def token_loss(self, policy: TokenLogprobs, past: Experience) -> TokenLoss:
        ratio = ratio_of(policy, past)
        length_B1 = ratio.mask_BT.sum(dim=-1, keepdim=True).clamp(min=1)
        mean_B1 = ratio.log_ratio_BT.sum(dim=-1, keepdim=True) / length_B1
        # The mean is held within its limit, never each token: one far token would stop teaching the whole response.
        mean_BT = mean_B1.clamp(-MEAN_LOG_RATIO_LIMIT, MEAN_LOG_RATIO_LIMIT).expand(ratio.mask_BT.shape)
        if self.form is Form.TOKEN:
            mean_BT = mean_BT.detach() + ratio.log_ratio_BT - ratio.log_ratio_BT.detach()
        return clipped(mean_BT, ratio, self.clip)
