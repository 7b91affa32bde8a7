"""Dr. GRPO: GRPO done right, without its two biases."""

from __future__ import annotations

from dataclasses import dataclass

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.groups import Scale
from engine.algorithms.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class DrGRPO(GRPO):
    """2503.20783, section 3: divide neither by the spread of a group's scores nor by a response's own length.

    The first weighs prompts that are nearly solved or nearly hopeless more than others; the second makes long wrong
    responses cheap. The sum over tokens is divided by the constant length limit instead.
    """

    aggregation: Aggregation = Aggregation.SEQ_MEAN_TOKEN_SUM_NORM
    scale: Scale = Scale.NONE
    kl_coef: float = 0.0
