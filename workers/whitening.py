"""Advantages brought to mean 0 and variance 1 over all action tokens of a rollout batch, on however many ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

VARIANCE_EPS = 1e-8


def whitened(advantages_BT: Tensor, mask_BT: Tensor, *, ddof: int, all_reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """(A - mean) / sqrt(variance + 1e-8); 0 at masked positions. A batch with fewer than two tokens is only centred.

    In two passes, in float64: E[x^2] - E[x]^2 of nearly equal advantages is mostly rounding. `all_reduce` sums over
    ranks; every rank must call, also one without a row.
    """
    own_N = advantages_BT[mask_BT].double()
    count, total = all_reduce(torch.stack([torch.full_like(own_N.sum(), len(own_N)), own_N.sum()]))
    mean = total / count.clamp(min=1)
    [squares] = all_reduce((own_N - mean).square().sum().reshape(1))
    scale = 1.0 if count < 2 else (squares / (count - ddof) + VARIANCE_EPS).rsqrt()
    white_BT = (advantages_BT.double() - mean) * scale
    return white_BT.to(advantages_BT.dtype).masked_fill(~mask_BT, 0.0)
