"""Dynamic sampling: groups whose siblings all scored the same teach nothing, so others are drawn instead
(DAPO, 2503.14476, section 3.2, Eq. 11)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from engine.algorithms.settings import InvalidSetting, at_least_zero
from workers.records import GroupSummary


class Exhausted(Enum):
    """What a step does when its limit is reached and groups are still missing."""

    PARTIAL = "partial"
    """It learns from those that it has."""
    FILL = "fill"
    """The first of those passed over make up the number."""
    ERROR = "error"
    """The run stops."""


class Surplus(Enum):
    """What becomes of informative groups beyond those that a step learns from."""

    CARRY = "carry"
    """The next step takes them first; they are one version old then."""
    DROP = "drop"


@dataclass(frozen=True, kw_only=True)
class DynamicSampling:
    """Which groups are passed over, and for how long others are drawn instead."""

    enabled: bool = False
    tolerance: float = 1e-6
    """Siblings whose raw scores differ by no more scored the same. Raw: a length penalty would hide that all are
    wrong."""
    max_batches: int = 10
    """Most groups that a step draws, in multiples of rollout.prompts_per_step; 0 sets no limit."""
    exhausted: Exhausted = Exhausted.PARTIAL
    draw_ahead: float = 1.0
    """Groups drawn at once, as a multiple of those that are missing: above 1 a step waits for fewer rounds, and has
    groups left over. With rollout.max_staleness above 0 the next steps' groups are on their way already, and it says
    nothing."""
    surplus: Surplus = Surplus.CARRY

    def __post_init__(self) -> None:
        at_least_zero(self, "tolerance", "max_batches")
        if self.draw_ahead < 1:
            raise InvalidSetting(f"draw_ahead is {self.draw_ahead}: a step draws at least what it misses; 1 or more")

    def reason_to_drop(self, summary: GroupSummary) -> str | None:
        """Why a group teaches nothing; None for one that does. A group of one is never dropped: it has no siblings."""
        if not self.enabled or len(summary.length_G) == 1:
            return None
        score_G = summary.score_G
        score_G = score_G[np.isfinite(score_G)]
        if len(score_G) < 2:
            return "unjudged"
        if np.ptp(score_G) > self.tolerance:
            return None
        return "all_right" if score_G.mean() > 0 else "all_wrong"
