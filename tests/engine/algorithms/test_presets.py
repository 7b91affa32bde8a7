"""Every file of conf/algo composes to the settings that its paper or its peer stands for."""

from __future__ import annotations

from typing import Any

import pytest

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.base import Objective
from engine.algorithms.cispo import CISPO
from engine.algorithms.correction import Correction, ImportanceWeight
from engine.algorithms.dapo import DAPO
from engine.algorithms.dpo import DPO, LossType
from engine.algorithms.dr_grpo import DrGRPO
from engine.algorithms.groups import Scale, Singleton
from engine.algorithms.grpo import GRPO
from engine.algorithms.gspo import GSPO, Form
from engine.algorithms.kl import KlEstimator
from engine.algorithms.kto import KTO
from engine.algorithms.orpo import ORPO
from engine.algorithms.policy_gradient import KlIn
from engine.algorithms.ppo import PPO
from engine.algorithms.pt import PT
from engine.algorithms.reinforce_pp import ReinforcePP
from engine.algorithms.reinforce_pp_baseline import ReinforcePPBaseline
from engine.algorithms.remax import ReMax
from engine.algorithms.rloo import RLOO, RatioOf
from engine.algorithms.rm import RM
from engine.algorithms.sft import SFT
from engine.algorithms.shaping import Shaping
from engine.algorithms.simpo import SimPO
from engine.config import CONF, load_config
from workers.config import OldLogprobs

PLAIN_CLIP = {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 0.0, "ratio_cap": 0.0}
NO_DIVERGENCE = {"kl_coef": 0.0, "kl_target": 0.0}
BY_SIBLINGS = {"scale": Scale.GROUP, "std_ddof": 1, "std_eps": 1e-6, "singleton": Singleton.ZERO, "whiten": False}
IN_REWARD = {"kl_in": KlIn.REWARD, "kl_estimator": KlEstimator.K1, "kl_target": 0.0}

PAPERS: dict[str, tuple[type, dict[str, Any]]] = {
    "grpo": (
        GRPO,
        PLAIN_CLIP
        | BY_SIBLINGS
        | {"aggregation": Aggregation.SEQ_MEAN_TOKEN_MEAN}
        | {"kl_coef": 0.04, "kl_in": KlIn.LOSS, "kl_estimator": KlEstimator.K3},
    ),
    "dr_grpo": (
        DrGRPO,
        PLAIN_CLIP
        | NO_DIVERGENCE
        | BY_SIBLINGS
        | {"aggregation": Aggregation.SEQ_MEAN_TOKEN_SUM_NORM, "scale": Scale.NONE},
    ),
    "dapo": (
        DAPO,
        PLAIN_CLIP
        | NO_DIVERGENCE
        | BY_SIBLINGS
        | {"aggregation": Aggregation.TOKEN_MEAN, "clip_high": 0.28}
        | {"shaping": Shaping(overlong_share=0.2, overlong_penalty=1.0)},
    ),
    "rloo": (
        RLOO,
        PLAIN_CLIP
        | IN_REWARD
        | {"kl_coef": 0.03, "ratio": RatioOf.TOKEN, "singleton": Singleton.ZERO, "whiten": False},
    ),
    "reinforce_pp": (
        ReinforcePP,
        PLAIN_CLIP | IN_REWARD | {"kl_coef": 0.01, "gamma": 1.0, "whiten": True, "whiten_ddof": 1},
    ),
    "reinforce_pp_baseline": (
        ReinforcePPBaseline,
        PLAIN_CLIP
        | {"kl_coef": 1e-3, "kl_in": KlIn.LOSS, "kl_estimator": KlEstimator.K2}
        | {"singleton": Singleton.ZERO, "whiten": True, "whiten_ddof": 1},
    ),
    "remax": (ReMax, PLAIN_CLIP | IN_REWARD | {"gamma": 1.0, "whiten": False}),
    "gspo": (
        GSPO,
        NO_DIVERGENCE
        | BY_SIBLINGS
        | {"clip_low": 3e-4, "clip_high": 4e-4, "clip_dual": 0.0, "form": Form.SEQUENCE}
        | {"aggregation": Aggregation.SEQ_MEAN_TOKEN_MEAN},
    ),
    "cispo": (
        CISPO,
        NO_DIVERGENCE
        | BY_SIBLINGS
        | {"clip_low": 1.0, "clip_high": 0.2, "ratio_cap": 0.0, "aggregation": Aggregation.TOKEN_MEAN},
    ),
    "ppo": (
        PPO,
        PLAIN_CLIP
        | IN_REWARD
        | {"kl_coef": 1e-3, "gamma": 1.0, "lam": 0.95, "value_clip": 0.5, "critic_warmup_steps": 0}
        | {"whiten": True, "whiten_ddof": 1, "aggregation": Aggregation.TOKEN_MEAN},
    ),
}
PEERS: dict[str, dict[str, Any]] = {
    "grpo_verl": PLAIN_CLIP
    | NO_DIVERGENCE
    | BY_SIBLINGS
    | {"kl_in": KlIn.LOSS, "kl_estimator": KlEstimator.LOW_VAR}
    | {"aggregation": Aggregation.TOKEN_MEAN, "clip_dual": 3.0, "singleton": Singleton.RAW, "entropy_coef": 0.0}
    | {"correction": Correction(weight=ImportanceWeight.NONE)},
    "grpo_easyr1": PLAIN_CLIP
    | IN_REWARD
    | BY_SIBLINGS
    | {"aggregation": Aggregation.TOKEN_MEAN, "clip_high": 0.3, "clip_dual": 3.0, "kl_coef": 1e-3}
    | {"singleton": Singleton.ERROR, "correction": Correction(weight=ImportanceWeight.NONE)},
    "grpo_trl": PLAIN_CLIP
    | NO_DIVERGENCE
    | BY_SIBLINGS
    | {"aggregation": Aggregation.TOKEN_MEAN, "std_eps": 1e-4, "singleton": Singleton.ERROR, "entropy_coef": 0.0}
    | {"correction": Correction(weight=ImportanceWeight.SEQUENCE_MASK, cap=3.0, floor=0.0)},
}

OFFLINE: dict[str, tuple[Objective, float]] = {
    "pt": (PT(), 2e-5),
    "sft": (SFT(), 2e-5),
    "rm": (RM(center_coef=0.0), 1e-5),
    "dpo": (DPO(beta=0.1, loss_type=LossType.SIGMOID, label_smoothing=0.0), 1e-6),
    "kto": (KTO(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0), 1e-6),
    "orpo": (ORPO(odds_coef=0.1), 5e-6),
    "simpo": (SimPO(beta=2.5, gamma_beta_ratio=0.55), 1e-6),
}


def assert_settings(algorithm: object, expected: dict[str, Any]) -> None:
    assert {name: getattr(algorithm, name) for name in expected} == expected


def test_every_file_is_looked_at_here() -> None:
    assert {path.stem for path in (CONF / "algo").glob("*.yaml")} == {*PAPERS, *PEERS, *OFFLINE}


@pytest.mark.parametrize("name", PAPERS)
def test_an_algorithm_composes_to_its_papers_settings(name: str) -> None:
    kind, expected = PAPERS[name]
    config = load_config(["model=nano", f"algo={name}"])
    assert type(config.algo) is kind
    assert config.algo == kind()
    assert_settings(config.algo, expected)
    assert config.algo.dynamic_sampling.enabled is (name == "dapo")
    assert config.algo.reference_refresh.every_steps == 0
    assert config.train.old_logprobs is OldLogprobs.AUTO
    assert config.train.epochs_per_step == 1
    assert config.train.updates_per_step == (4 if name == "gspo" else 1)


@pytest.mark.parametrize("name", PEERS)
def test_a_preset_composes_to_its_peers_settings(name: str) -> None:
    config = load_config(["model=nano", f"algo={name}"])
    assert type(config.algo) is GRPO
    assert_settings(config.algo, PEERS[name])
    assert not config.algo.dynamic_sampling.enabled and config.algo.shaping == Shaping()
    # TRL takes its own detached log-probs on a step's only update.
    recomputed = OldLogprobs.AUTO if name == "grpo_trl" else OldLogprobs.RECOMPUTE
    assert config.train.old_logprobs is recomputed


def test_what_is_typed_wins_over_a_preset() -> None:
    config = load_config(
        ["model=nano", "algo=grpo_verl", "algo.clip_dual=0", "algo.correction.weight=token_mask", "algo.kl_coef=1e-3"]
    )
    assert config.algo.clip_dual == 0.0 and config.algo.kl_coef == 1e-3
    assert config.algo.correction == Correction(weight=ImportanceWeight.TOKEN_MASK)
    assert config.algo.singleton is Singleton.RAW


@pytest.mark.parametrize("name", OFFLINE)
def test_an_objective_composes_to_its_defaults_and_the_field_s_learning_rate(name: str) -> None:
    objective, learning_rate = OFFLINE[name]
    config = load_config(["model=nano", f"algo={name}"])
    assert config.algo == objective
    assert config.train.learning_rate == learning_rate


def test_an_experiment_keeps_its_own_learning_rate() -> None:
    assert load_config(["experiment=nano_base"]).train.learning_rate == 2e-3
