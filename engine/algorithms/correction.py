"""Rollout correction: the engine that sampled is not quite the policy that learns.

Three policies: mu sampled a token (the rollout engine's arithmetic, perhaps older weights), pi_old is the trainer's at
the start of the step, pi learns. With pi_old recomputed by the trainer the loss uses the ratio pi / pi_old and is
multiplied by a weight w = f(pi_old / mu) without gradient ("decoupled", 2505.24298). With
`train.old_logprobs=rollout` pi_old *is* mu ("bypass"): the ratio then spans the mismatch, and every weight here is 1,
so that nothing is counted twice.

With d = log pi_old - log mu per action token:

    token_tis      w = min(e^d, cap), at least floor                          truncated importance sampling
    token_mask     w = e^d where floor <= e^d <= cap, otherwise 0             IcePop
    sequence_tis   w = min(e^(sum of d), cap), at least floor                 of a whole response
    sequence_mask  w = e^(sum of d) where floor <= it <= cap, otherwise 0

Besides, whole responses can be rejected: where the geometric mean e^(mean of d) leaves bounds, and where a response to
be made less likely was sampled by a policy that has drifted away (off-policy sequence masking, DeepSeek-V3.2,
2512.02556).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from engine.algorithms.settings import InvalidSetting, at_least_zero
from workers.records import Experience, TokenLogprobs

if TYPE_CHECKING:
    from torch import Tensor

LOG_WEIGHT_LIMIT = 20.0
"""exp(20) is 5e8: beyond it a weight says nothing, and its overflow would cost the step."""


class ImportanceWeight(Enum):
    """What the policy's loss is multiplied by."""

    NONE = "none"
    TOKEN_TIS = "token_tis"
    TOKEN_MASK = "token_mask"
    SEQUENCE_TIS = "sequence_tis"
    SEQUENCE_MASK = "sequence_mask"


class Denominator(Enum):
    """What the losses are divided by where tokens are rejected."""

    ORIGINAL = "original"
    """All action tokens: rejecting some makes the step smaller."""
    KEPT = "kept"
    """Those that are not rejected, which leave the policy's step altogether: divergence and entropy do not count them
    either. A critic learns from all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What the policy's loss per token is multiplied by, and what to know about it. Nothing here has a gradient."""

    weight_BT: Tensor
    """0 at masked positions and where a token is rejected."""
    metrics_BT: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Correction:
    """How the mismatch between rollout engine and trainer is corrected in the policy's loss."""

    weight: ImportanceWeight = ImportanceWeight.TOKEN_TIS
    cap: float = 2.0
    floor: float = 0.0
    geometric_low: float = 0.0
    """Responses whose geometric mean ratio is below are rejected: 0.99, say."""
    geometric_high: float = math.inf
    """Those above it too: 1.01, say."""
    drift_limit: float = math.inf
    """A response with a negative advantage is rejected when mean(log mu - log pi) exceeds this: 0.1, say."""
    denominator: Denominator = Denominator.ORIGINAL

    def __post_init__(self) -> None:
        at_least_zero(self, "geometric_low")
        if not 0 <= self.floor <= 1 <= self.cap:
            raise InvalidSetting(
                f"cap is {self.cap}, with floor={self.floor}: without a mismatch a weight is 1, which must lie between "
                "them; floor is 0 or more"
            )
        if not self.geometric_low <= 1 <= self.geometric_high:
            raise InvalidSetting(
                f"geometric_low is {self.geometric_low} and geometric_high {self.geometric_high}: without a mismatch "
                "the ratio is 1, which must lie between them"
            )
        if not self.drift_limit >= 0:
            raise InvalidSetting(f"drift_limit is {self.drift_limit}: without drift it is 0, which must pass")

    def of(self, policy: TokenLogprobs, past: Experience) -> Corrected:
        """Whole responses are in `past`: a micro-batch never splits one."""
        mask_BT = past.batch.mask_BT
        rollout_BT = past.batch.rollout_logprobs_BT.masked_fill(~mask_BT, 0.0)
        log_ratio_BT = past.outputs.old_logprobs_BT.detach().masked_fill(~mask_BT, 0.0) - rollout_BT
        length_B1 = mask_BT.sum(dim=-1, keepdim=True).clamp(min=1)
        ratio_BT, unbounded_BT = _exp(log_ratio_BT), self._unbounded(log_ratio_BT)
        bounded_BT = self._bounded(unbounded_BT)

        geometric_B1 = _exp(log_ratio_BT.sum(dim=-1, keepdim=True) / length_B1)
        kept_B1 = (geometric_B1 >= self.geometric_low) & (geometric_B1 <= self.geometric_high)
        if math.isfinite(self.drift_limit):
            now_BT = policy.logprobs_BT.detach().masked_fill(~mask_BT, 0.0)
            drift_B1 = (rollout_BT - now_BT).sum(dim=-1, keepdim=True) / length_B1
            advantages_BT = past.credit.advantages_BT.masked_fill(~mask_BT, 0.0)
            blamed_B1 = advantages_BT.sum(dim=-1, keepdim=True) < 0
            kept_B1 = kept_B1 & ~(blamed_B1 & (drift_B1 > self.drift_limit))
        weight_BT = bounded_BT.where(mask_BT & kept_B1, 0.0)
        return Corrected(
            weight_BT=weight_BT,
            metrics_BT={
                # Of mu against pi_old, on tokens that mu sampled: k3, and chi-square.
                "mismatch_k3": log_ratio_BT.clamp(max=LOG_WEIGHT_LIMIT).expm1() - log_ratio_BT,
                "mismatch_chi2": ratio_BT.square() - 1.0,
                "correction_weight": weight_BT,
                "correction_weight_squared": weight_BT.square(),
                "correction_clipped": ((weight_BT > 0) & (bounded_BT != unbounded_BT)).to(ratio_BT.dtype),
                "correction_rejected": (weight_BT == 0).to(ratio_BT.dtype),
            },
        )

    @property
    def recounts(self) -> bool:
        return self.denominator is Denominator.KEPT

    def kept(self, past: Experience) -> Tensor:
        """[B, T] bool: the action tokens that are not rejected when pi is still pi_old."""
        start = TokenLogprobs(logprobs_BT=past.outputs.old_logprobs_BT, entropy_BT=past.outputs.old_logprobs_BT)
        return self.of(start, past).weight_BT > 0

    def _unbounded(self, log_ratio_BT: Tensor) -> Tensor:
        match self.weight:
            case ImportanceWeight.NONE:
                return log_ratio_BT.new_ones(log_ratio_BT.shape)
            case ImportanceWeight.TOKEN_TIS | ImportanceWeight.TOKEN_MASK:
                return _exp(log_ratio_BT)
            case ImportanceWeight.SEQUENCE_TIS | ImportanceWeight.SEQUENCE_MASK:
                return _exp(log_ratio_BT.sum(dim=-1, keepdim=True)).expand(log_ratio_BT.shape)

    def _bounded(self, weight_BT: Tensor) -> Tensor:
        if self.weight in (ImportanceWeight.TOKEN_MASK, ImportanceWeight.SEQUENCE_MASK):
            return weight_BT.where((weight_BT >= self.floor) & (weight_BT <= self.cap), 0.0)
        return weight_BT.clamp(self.floor, self.cap)


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT).exp()
