"""From a response's raw score to the reward that is learned from: clipping, length, truncation, in this order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from engine.algorithms.settings import InvalidSetting, at_least_zero, share_of_one


class Truncated(Enum):
    """What becomes of a response that ran into the length limit."""

    KEEP = "keep"
    """It is like any other."""
    MASK = "mask"
    """It counts among its siblings, but nothing is learned from its tokens (DAPO's overlong filtering, 2503.14476
    section 3.4)."""
    SET = "set"
    """Its reward is `truncated_value`."""
    SCALE = "scale"
    """Its reward is multiplied by `truncated_value`."""


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """How rewards are shaped; by default not at all."""

    clip: tuple[float, float] = (-math.inf, math.inf)
    """Scores are held within these bounds, before anything is added."""
    overlong_share: float = 0.0
    """Last share of the length limit in which a longer response costs more (DAPO: 0.2); 0 turns it off."""
    overlong_penalty: float = 1.0
    """What a response of the full length pays."""
    truncated: Truncated = Truncated.KEEP
    truncated_value: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.clip
        if not low <= high:
            raise InvalidSetting(f"clip is {self.clip}: the lower bound comes first")
        share_of_one(self, "overlong_share")
        at_least_zero(self, "overlong_penalty")

    def rewards(
        self, score_B: np.ndarray, *, length_B: np.ndarray, truncated_B: np.ndarray, max_length: int
    ) -> np.ndarray:
        """[B] float64; NaN stays NaN. `length_B` counts action tokens, `max_length` is the response length limit.

        >>> Shaping(overlong_share=0.4).rewards(
        ...     np.ones(3), length_B=np.array([6, 8, 10]), truncated_B=np.zeros(3, dtype=bool), max_length=10).tolist()
        [1.0, 0.5, 0.0]
        """
        reward_B = score_B.astype(np.float64).clip(*self.clip)
        if self.overlong_share:
            # Soft overlong punishment, 2503.14476 Eq. 13, held at the full penalty beyond the limit.
            zone = self.overlong_share * max_length
            over_B = (length_B - (max_length - zone)) / zone
            reward_B = reward_B - self.overlong_penalty * over_B.clip(0.0, 1.0)
        match self.truncated:
            case Truncated.SET:
                # A response that could not be judged stays so.
                return np.where(truncated_B & ~np.isnan(reward_B), self.truncated_value, reward_B)
            case Truncated.SCALE:
                return np.where(truncated_B, self.truncated_value * reward_B, reward_B)
            case Truncated.KEEP | Truncated.MASK:
                return reward_B

    def trains_on(self, truncated_B: np.ndarray) -> np.ndarray:
        """[B] bool: the responses whose tokens are learned from."""
        return ~truncated_B if self.truncated is Truncated.MASK else np.ones(len(truncated_B), dtype=bool)
