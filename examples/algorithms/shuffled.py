"""The control: each algorithm on rewards that others earned, so that they say nothing about the response.

python -m engine.main algo=ppo algo._target_=examples.algorithms.shuffled.ShuffledPPO

Not the siblings' rewards: a response is one of the n that make its group's mean, so rewards that stay in the group hold
1/n of the truth. Group baselines take it away; a critic, a greedy response or the batch's mean do not, and PPO learns
from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine.algorithms.cispo import CISPO
from engine.algorithms.dapo import DAPO
from engine.algorithms.dr_grpo import DrGRPO
from engine.algorithms.grpo import GRPO
from engine.algorithms.gspo import GSPO
from engine.algorithms.ppo import PPO
from engine.algorithms.reinforce_pp import ReinforcePP
from engine.algorithms.reinforce_pp_baseline import ReinforcePPBaseline
from engine.algorithms.remax import ReMax
from engine.algorithms.rloo import RLOO
from engine.algorithms.shaping import Shaping


class Deck:
    """The rewards of the responses before, to be dealt again."""

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._chance = np.random.default_rng(0)
        self._earned_N = np.array([0.0, 1.0])

    def swap(self, earned_B: np.ndarray) -> np.ndarray:
        """As many rewards of earlier responses; these are dealt later."""
        dealt_B = self._chance.choice(self._earned_N, size=len(earned_B))
        self._earned_N = np.concatenate([self._earned_N, earned_B])[-self._size :]
        return dealt_B


DECK = Deck(size=256)
"""Of this process: settings do not change during a run. The driver shapes group after group in their own order, so a
run that is repeated from its start deals the same."""


@dataclass(frozen=True, kw_only=True)
class Shuffled(Shaping):
    """Shapes rewards, and swaps them for those of earlier responses."""

    def rewards(
        self, score_B: np.ndarray, *, length_B: np.ndarray, truncated_B: np.ndarray, max_length: int
    ) -> np.ndarray:
        reward_B = super().rewards(score_B, length_B=length_B, truncated_B=truncated_B, max_length=max_length)
        judged_B = np.isfinite(reward_B)  # who was not judged stays so
        reward_B[judged_B] = DECK.swap(reward_B[judged_B])
        return reward_B


@dataclass(frozen=True, kw_only=True)
class ShuffledGRPO(GRPO):
    shaping: Shaping = field(default_factory=Shuffled)


@dataclass(frozen=True, kw_only=True)
class ShuffledDrGRPO(DrGRPO):
    shaping: Shaping = field(default_factory=Shuffled)


@dataclass(frozen=True, kw_only=True)
class ShuffledDAPO(DAPO):
    shaping: Shaping = field(default_factory=lambda: Shuffled(overlong_share=0.2))


@dataclass(frozen=True, kw_only=True)
class ShuffledRLOO(RLOO):
    shaping: Shaping = field(default_factory=Shuffled)


@dataclass(frozen=True, kw_only=True)
class ShuffledReinforcePP(ReinforcePP):
    shaping: Shaping = field(default_factory=Shuffled)


@dataclass(frozen=True, kw_only=True)
class ShuffledReinforcePPBaseline(ReinforcePPBaseline):
    shaping: Shaping = field(default_factory=Shuffled)


@dataclass(frozen=True, kw_only=True)
class ShuffledReMax(ReMax):
    shaping: Shaping = field(default_factory=Shuffled)


@dataclass(frozen=True, kw_only=True)
class ShuffledGSPO(GSPO):
    shaping: Shaping = field(default_factory=Shuffled)


@dataclass(frozen=True, kw_only=True)
class ShuffledCISPO(CISPO):
    shaping: Shaping = field(default_factory=Shuffled)


@dataclass(frozen=True, kw_only=True)
class ShuffledPPO(PPO):
    shaping: Shaping = field(default_factory=Shuffled)
