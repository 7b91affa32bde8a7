"""A control: GRPO on rewards that were shuffled across the whole batch, so that they say nothing about the response."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from engine.algorithms.base import Outcomes
from engine.algorithms.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class ShuffledGRPO(GRPO):
    """As many rewards of each size as before, on responses that did not earn them."""

    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        # Another shuffle for every batch, the same one whenever the run is repeated.
        shuffle = np.random.default_rng(zlib.crc32(outcomes.score_B.tobytes()))
        return GRPO.advantage(self, replace(outcomes, score_B=shuffle.permutation(outcomes.score_B)))
