"""DAPO: GRPO for long chains of thought."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.dynamic_sampling import DynamicSampling
from engine.algorithms.grpo import GRPO
from engine.algorithms.shaping import Shaping


@dataclass(frozen=True, kw_only=True)
class DAPO(GRPO):
    """Decoupled clip and dynamic sampling policy optimization (2503.14476, Eq. 8).

    Four changes to GRPO: the ceiling of the ratio is higher than its floor is low, so that unlikely tokens can grow
    (3.1); groups that teach nothing are replaced (3.2); every token weighs the same (3.3); a response that comes near
    the length limit pays for it (3.4). No reference.
    """

    aggregation: Aggregation = Aggregation.TOKEN_MEAN
    clip_high: float = 0.28
    kl_coef: float = 0.0
    shaping: Shaping = field(default_factory=lambda: Shaping(overlong_share=0.2))
    dynamic_sampling: DynamicSampling = field(default_factory=lambda: DynamicSampling(enabled=True))
