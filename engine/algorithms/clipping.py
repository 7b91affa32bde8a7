"""The clipped surrogate: learn from a token until its probability has moved far enough (PPO, 1707.06347 Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.records import Experience, TokenLogprobs

if TYPE_CHECKING:
    from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""exp(20) is 5e8: further apart the ratio says nothing, and its overflow would cost the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """How far the ratio of new to old probability may go before a token stops teaching. 0 turns a ceiling off."""

    low: float
    """The ratio's floor is 1 - low, for tokens to be made less likely."""
    high: float
    """The ratio's ceiling is 1 + high, for tokens to be made more likely."""
    dual: float = 0.0
    """Ceiling of the ratio for tokens to be made less likely (1912.09729 Eq. 5)."""
    ratio_cap: float = 0.0
    """Ceiling of the ratio before all else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """The loss per token, 0 without a gradient at masked positions; and what to know about it, finite there."""

    loss_BT: Tensor
    metrics_BT: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """New against old probability of each action token; masked positions hold 0 and send no gradient."""

    log_ratio_BT: Tensor
    """log pi - log pi_old, not held within any limit."""
    advantages_BT: Tensor
    mask_BT: Tensor


def ratio_of(policy: TokenLogprobs, past: Experience) -> Ratio:
    mask_BT = past.batch.mask_BT
    # Masked before the arithmetic: a NaN that is masked afterwards still has a NaN gradient.
    new_BT = policy.logprobs_BT.masked_fill(~mask_BT, 0.0)
    old_BT = past.outputs.old_logprobs_BT.masked_fill(~mask_BT, 0.0)
    return Ratio(
        log_ratio_BT=new_BT - old_BT,
        advantages_BT=past.credit.advantages_BT.masked_fill(~mask_BT, 0.0),
        mask_BT=mask_BT,
    )


def clipped_surrogate(policy: TokenLogprobs, past: Experience, clip: Clip) -> TokenLoss:
    """max(-A ratio, -A clip(ratio)) per token."""
    ratio = ratio_of(policy, past)
    return clipped(ratio.log_ratio_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT), ratio, clip)


def clipped(log_ratio_BT: Tensor, ratio: Ratio, clip: Clip) -> TokenLoss:
    """The surrogate of any log-ratio, one a token (PPO) or one a response (GSPO)."""
    advantages_BT, ratio_BT = ratio.advantages_BT, log_ratio_BT.exp()
    bounded_BT = ratio_BT.clamp(max=clip.ratio_cap) if clip.ratio_cap else ratio_BT
    loss_BT = (-advantages_BT * bounded_BT).maximum(-advantages_BT * ratio_BT.clamp(1 - clip.low, 1 + clip.high))
    flags = {
        "clip_low": (advantages_BT < 0) & (ratio_BT < 1 - clip.low),
        "clip_high": (advantages_BT > 0) & (ratio_BT > 1 + clip.high),
    }
    if clip.dual:
        flags["clip_dual"] = (advantages_BT < 0) & (ratio_BT > clip.dual)
        loss_BT = loss_BT.minimum(-advantages_BT * clip.dual).where(advantages_BT < 0, loss_BT)
    return TokenLoss(
        loss_BT=loss_BT,
        metrics_BT={
            **{name: flag_BT.to(ratio_BT.dtype) for name, flag_BT in flags.items()},
            **movement(ratio),
            "ratio_mean": ratio_BT,
        },
    )


def movement(ratio: Ratio) -> dict[str, Tensor]:
    """KL(old || new) on tokens sampled from old: k3, and k1 to see the sign."""
    log_ratio_BT = ratio.log_ratio_BT.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return {"approx_kl": log_ratio_BT.expm1() - log_ratio_BT, "approx_kl_k1": -log_ratio_BT}
