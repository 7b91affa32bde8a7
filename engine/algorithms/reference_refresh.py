"""When the reference follows the policy: never, all the way every so many steps, or a part of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.algorithms.settings import InvalidSetting, at_least_zero


@dataclass(frozen=True, kw_only=True)
class ReferenceRefresh:
    """reference <- share * policy + (1 - share) * reference, every so many steps (TR-DPO, 2404.09656).

    A share of 1 is a hard reset (ProRL, 2505.24864); below 1 the reference is a moving average.
    """

    every_steps: int = 0
    """0: the reference stays the policy that the run starts from."""
    share: float = 1.0

    def __post_init__(self) -> None:
        at_least_zero(self, "every_steps")
        if not (math.isfinite(self.share) and 0 < self.share <= 1):
            raise InvalidSetting(f"share is {self.share}: the policy's part in the new reference, above 0, at most 1")

    def is_due(self, step: int) -> bool:
        """Whether the reference moves after step `step` (from 0).

        >>> [ReferenceRefresh(every_steps=3).is_due(step) for step in range(6)]
        [False, False, True, False, False, True]
        """
        return self.every_steps > 0 and (step + 1) % self.every_steps == 0
