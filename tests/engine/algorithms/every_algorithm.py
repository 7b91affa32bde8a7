"""Every algorithm that ships, with settings under which each of its terms is at work on a few random rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.cispo import CISPO
from engine.algorithms.correction import Correction, ImportanceWeight
from engine.algorithms.dapo import DAPO
from engine.algorithms.dr_grpo import DrGRPO
from engine.algorithms.grpo import GRPO
from engine.algorithms.gspo import GSPO, Form
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import PolicyGradient
from engine.algorithms.ppo import PPO
from engine.algorithms.reinforce_pp import ReinforcePP
from engine.algorithms.reinforce_pp_baseline import ReinforcePPBaseline
from engine.algorithms.remax import ReMax
from engine.algorithms.rloo import RLOO, RatioOf

REJECTING = Correction(
    weight=ImportanceWeight.SEQUENCE_TIS,
    cap=1.5,
    floor=0.5,
    geometric_low=0.9,
    geometric_high=1.15,
    drift_limit=0.05,
)
ALGORITHMS: dict[str, PolicyGradient] = {
    "grpo": GRPO(kl_coef=0.3),
    "grpo, every term": GRPO(
        kl_coef=0.3,
        kl_estimator=KlEstimator.LOW_VAR,
        entropy_coef=0.05,
        clip_dual=1.3,
        ratio_cap=1.5,
        correction=REJECTING,
    ),
    "dr_grpo": DrGRPO(entropy_coef=0.05),
    "dapo": DAPO(),
    "rloo": RLOO(),
    "rloo, sequence": RLOO(ratio=RatioOf.SEQUENCE, clip_low=0.5, clip_high=0.5),
    "reinforce_pp": ReinforcePP(gamma=0.9),
    "reinforce_pp_baseline": ReinforcePPBaseline(kl_coef=0.1),
    "remax": ReMax(gamma=0.9),
    "gspo": GSPO(clip_low=0.3, clip_high=0.3),
    "gspo, token": GSPO(clip_low=0.3, clip_high=0.3, form=Form.TOKEN),
    "cispo": CISPO(),
    "ppo": PPO(gamma=0.99, lam=0.9, critic_lam=0.95),
}
every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
every_mode = pytest.mark.parametrize("mode", Aggregation, ids=lambda mode: mode.value)


def algorithm_of(name: str, mode: Aggregation) -> PolicyGradient:
    return replace(ALGORITHMS[name], aggregation=mode)
