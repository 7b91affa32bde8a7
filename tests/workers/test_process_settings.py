"""Threads that wait stay awake only where nobody else can use their core."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from engine.config import load_config
from workers.group import RewardGroup
from workers.process_settings import KEEP_FREED_MEMORY, process_settings, take_turns

AWAKE = {"GOMP_SPINCOUNT": "20000"}
ASLEEP = {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}


def waiting(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name in ASLEEP}


@pytest.mark.parametrize(
    "overrides",
    [[], ["algo.kl_coef=0"], ["algo=sft"], ["algo=sft", "rollout.engines=2"]],
    ids=["one of each, and a reference", "no reference", "offline", "offline, whatever is said of engines"],
)
def test_models_that_wait_for_each_other_take_turns(overrides: list[str]) -> None:
    team = load_config(overrides).team()
    assert take_turns(team)
    assert waiting(process_settings(team, {})) == AWAKE


@pytest.mark.parametrize(
    "overrides", [["train.ranks=2"], ["rollout.engines=2"], ["algo=ppo"], ["train.ranks=2", "algo=sft"]]
)
def test_models_that_work_side_by_side_sleep_while_they_wait(overrides: list[str]) -> None:
    team = load_config(overrides).team()
    assert not take_turns(team)
    assert waiting(process_settings(team, {})) == ASLEEP


def test_a_model_that_judges_works_while_others_decode() -> None:
    team = load_config([]).team()
    team.reward.model = "a/reward/model"
    assert not take_turns(team)
    team.reward.model, team.reward.judge.model = "", "a/judge"
    assert not take_turns(team)


@pytest.mark.parametrize(
    "said", [{"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}]
)
def test_what_the_users_environment_says_of_waiting_stands(said: dict[str, str]) -> None:
    for overrides in ([], ["train.ranks=2"]):
        assert waiting(process_settings(load_config(overrides).team(), said)) == said


def test_reward_functions_sleep_whatever_the_others_do() -> None:
    assert waiting(RewardGroup.own_environment) == ASLEEP


def test_freed_memory_is_kept_on_a_cpu_alone() -> None:
    on_cpu, on_gpu = load_config([]).team(), load_config(["cluster=one_gpu"]).team()
    assert KEEP_FREED_MEMORY.items() <= process_settings(on_cpu, {}).items()
    assert not KEEP_FREED_MEMORY.keys() & process_settings(on_gpu, {}).keys()
