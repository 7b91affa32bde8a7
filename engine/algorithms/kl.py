"""How far the policy went from the reference, estimated on sampled tokens.

With x = log pi - log ref of a token sampled from pi (http://joschu.net/blog/kl-approx.html):

    k1 = x    k2 = x^2 / 2    k3 = e^-x + x - 1    abs = |x|    low_var = k3, at most 10

As a *value* k1 and k3 are unbiased for KL(pi || ref). As a *loss* what counts is the expected gradient (2506.09477):
that of k1 is zero, that of k2 is the gradient of KL(pi || ref), that of k3 is the gradient of KL(ref || pi).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOG_RATIO_LIMIT = 20.0
LOW_VAR_LIMIT = 10.0
ERROR_LIMIT = 0.2
"""However far the divergence is from its target, the coefficient does not jump."""


class KlEstimator(Enum):
    """How the divergence of a sampled token is estimated."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"
    """With |x| clamped to 20: the overflow of one absurd token would cost the step."""
    ABS = "abs"
    LOW_VAR = "low_var"
    """k3 with its value clamped to 10 as well: one absurd token cannot own the step."""


def kl_estimate(logprobs_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, estimator: KlEstimator) -> Tensor:
    """The estimate per token; 0 at masked positions."""
    # Masked before the arithmetic: a NaN that is masked afterwards still has a NaN gradient.
    x_BT = logprobs_BT.masked_fill(~mask_BT, 0.0) - reference_BT.masked_fill(~mask_BT, 0.0)
    match estimator:
        case KlEstimator.K1:
            return x_BT
        case KlEstimator.K2:
            return x_BT.square() / 2
        case KlEstimator.K3:
            return _k3(x_BT)
        case KlEstimator.ABS:
            return x_BT.abs()
        case KlEstimator.LOW_VAR:
            return _k3(x_BT).clamp(max=LOW_VAR_LIMIT)


def _k3(x_BT: Tensor) -> Tensor:
    x_BT = x_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (-x_BT).expm1() + x_BT


def adapted_coefficient(
    coefficient: float, *, divergence: float, responses: float, target: float, horizon: float
) -> float:
    """The coefficient after a batch of `responses` whose mean divergence was `divergence` (1909.08593, section 2.2).

    >>> adapted_coefficient(0.1, divergence=12.0, responses=256, target=6.0, horizon=10_000)
    0.100512
    """
    error = min(max(divergence / target - 1.0, -ERROR_LIMIT), ERROR_LIMIT)
    # A batch of many times the horizon must not turn the penalty into a reward.
    return coefficient * max(0.0, 1.0 + error * responses / horizon)
