"""The clipped surrogate: learn from a token until its probability has moved far enough (PPO, 1707.06347 Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.algorithms.aggregation import token_mean
from workers.records import Experience, TokenLogprobs, Totals

if TYPE_CHECKING:
    from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""exp(20) is 5e8: further apart the ratio says nothing, and its overflow would cost the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """How far the ratio of new to old probability may go before a token stops teaching."""

    low: float
    """The ratio's floor is 1 - low, for tokens to be made less likely."""
    high: float
    """The ratio's ceiling is 1 + high, for tokens to be made more likely."""
    dual: float | None = None
    """Ceiling of the ratio for tokens to be made less likely (1912.09729 Eq. 5); None leaves it open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """The loss per token, and what to know about the ratio behind it."""

    loss_BT: Tensor
    metrics: Mapping[str, Tensor]
    """Contributions: token means of the optimizer step."""


def clipped_surrogate(policy: TokenLogprobs, experience: Experience, totals: Totals, clip: Clip) -> Surrogate:
    """max(-A ratio, -A clip(ratio)) per token; masked positions are 0 and send no gradient, whatever they hold."""
    mask_BT = experience.batch.mask_BT
    # Masked before the arithmetic: a NaN that is masked afterwards still has a NaN gradient.
    new_BT = policy.logprobs_BT.masked_fill(~mask_BT, 0.0)
    old_BT = experience.outputs.old_logprobs_BT.masked_fill(~mask_BT, 0.0)
    advantages_BT = experience.credit.advantages_BT.masked_fill(~mask_BT, 0.0)

    log_ratio_BT = (new_BT - old_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_BT = log_ratio_BT.exp()
    loss_BT = (-advantages_BT * ratio_BT).maximum(-advantages_BT * ratio_BT.clamp(1 - clip.low, 1 + clip.high))
    clipped = {
        "clip_low": (advantages_BT < 0) & (ratio_BT < 1 - clip.low),
        "clip_high": (advantages_BT > 0) & (ratio_BT > 1 + clip.high),
    }
    if clip.dual is not None:
        clipped["clip_dual"] = (advantages_BT < 0) & (ratio_BT > clip.dual)
        loss_BT = loss_BT.minimum(-advantages_BT * clip.dual).where(advantages_BT < 0, loss_BT)

    log_ratio_BT = log_ratio_BT.detach()
    metrics_BT = {
        **{name: tokens_BT.to(ratio_BT.dtype) for name, tokens_BT in clipped.items()},
        # KL(old || new) on tokens sampled from old: k3, and k1 to see the sign.
        "approx_kl": log_ratio_BT.expm1() - log_ratio_BT,
        "approx_kl_k1": -log_ratio_BT,
        "ratio_mean": ratio_BT,
        "entropy": policy.entropy_BT,
    }
    return Surrogate(
        loss_BT=loss_BT,
        metrics={name: token_mean(value_BT, mask_BT, totals) for name, value_BT in metrics_BT.items()},
    )
