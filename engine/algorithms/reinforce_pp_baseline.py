"""REINFORCE++-baseline: the siblings' mean first, then the spread of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.algorithms.base import Outcomes
from engine.algorithms.groups import Singleton, above_siblings
from engine.algorithms.policy_gradient import ClippedPolicyGradient


@dataclass(frozen=True, kw_only=True)
class ReinforcePPBaseline(ClippedPolicyGradient):
    """REINFORCE++ with a group baseline (2501.03262, section 3): for rewards that depend on the prompt's difficulty.

    A response is worth how far it is above its siblings; advantages are then normalised over all tokens of the batch,
    so that a group of nearly equal scores is not blown up by its own small spread. The divergence is a loss of its own,
    with the gradient of KL(policy || reference).
    """

    min_group_size: ClassVar[int] = 2

    whiten: bool = True
    kl_coef: float = 1e-3
    singleton: Singleton = Singleton.ZERO
    """What a response is worth whose siblings could not be judged."""

    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        return above_siblings(outcomes.score_B, outcomes.group_B, singleton=self.singleton)
