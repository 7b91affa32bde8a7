"""Which settings a resumed run must share with the one that it goes on from."""

from __future__ import annotations

import pytest

from engine.config import load_config
from engine.resume import deciding_settings


def differences(*overrides: str, stage: tuple[str, ...] = ("algo=ppo",)) -> set[str]:
    """The deciding settings that these overrides change."""
    one, other = (deciding_settings(load_config([*stage, *more])) for more in ((), overrides))
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=0.5",
        "train.epochs_per_step=2",
        "train.old_logprobs=rollout",
        "critic.learning_rate=0.5",
        "critic.warmup_updates=3",
        "critic.path=organisation/name",
        "algo.kl_target=0.1",
        "algo.lam=0.9",
        "algo.critic_warmup_steps=1",
        "algo.shaping.overlong_share=0.2",
        "algo.correction.cap=3.0",
        "algo.dynamic_sampling.draw_ahead=1.5",
        "algo.reference_refresh.every_steps=2",
        "run.seed=1",
        "run.steps=9",  # the learning rate's schedule ends there
    ],
)
def test_what_is_learned_depends_on_it(override: str) -> None:
    assert differences(override) == {override.partition("=")[0]}


@pytest.mark.parametrize(
    "override",
    [
        "run.save_every_steps=3",
        "evaluation.prompts=7",
        "cluster.call_timeout_s=9",
        "reward.workers=2",
        "train.ranks=2",
        "rollout.engines=2",
    ],
)
def test_what_is_learned_does_not_depend_on_it(override: str) -> None:
    assert not differences(override)
    assert not differences("run.steps=9", stage=("train.schedule=constant",))


def test_with_dropout_the_number_of_ranks_decides_what_is_learned() -> None:
    stage = ("algo=sft", "data=arithmetic_demos", "tuning=lora", "tuning.dropout=0.1")
    assert differences("train.ranks=2", stage=stage) == {"train.ranks"}


def test_another_algorithm_is_another_run_where_the_settings_are_equal() -> None:
    assert "algo" in differences("algo._target_=engine.algorithms.dapo.DAPO", stage=("algo=grpo",))
