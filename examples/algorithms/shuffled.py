"""The control: each algorithm on rewards that are dealt at random among siblings, so that they say nothing about the
response. Every group has the rewards that it had before; whoever learns from these learns from something else.

python -m engine.main algo=ppo algo._target_=examples.algorithms.shuffled.ShuffledPPO
"""

from __future__ import annotations

import zlib
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


@dataclass(frozen=True, kw_only=True)
class Shuffled(Shaping):
    """Shapes the rewards of a group, and deals them out anew. The greedy response, which is alone, keeps its own."""

    def rewards(
        self, score_B: np.ndarray, *, length_B: np.ndarray, truncated_B: np.ndarray, max_length: int
    ) -> np.ndarray:
        reward_B = super().rewards(score_B, length_B=length_B, truncated_B=truncated_B, max_length=max_length)
        # Who was not judged stays so. Another deal for every group, the same one whenever the run is repeated.
        judged = np.flatnonzero(np.isfinite(reward_B))
        deal = np.random.default_rng(zlib.crc32(score_B.tobytes() + length_B.tobytes()))
        reward_B[judged] = reward_B[deal.permutation(judged)]
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
