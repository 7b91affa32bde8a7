"""Threads that wait stay awake only where nobody else can use their core."""

from __future__ import annotations

import pytest

from engine.config import load_config
from workers.process_settings import KEEP_FREED_MEMORY, process_settings, take_turns

AWAKE, ASLEEP = ("GOMP_SPINCOUNT", "20000"), ("OMP_WAIT_POLICY", "PASSIVE")


@pytest.mark.parametrize(
    "overrides",
    [[], ["algo.kl_coef=0"], ["algo=sft"], ["algo=sft", "rollout.engines=2"]],
    ids=["one of each, and a reference", "no reference", "offline", "offline, whatever is said of engines"],
)
def test_models_that_wait_for_each_other_take_turns(overrides: list[str]) -> None:
    team = load_config(overrides).team()
    assert take_turns(team)
    settings = process_settings(team, {})
    assert AWAKE in settings.items() and ASLEEP[0] not in settings


@pytest.mark.parametrize(
    "overrides", [["train.ranks=2"], ["rollout.engines=2"], ["algo=ppo"], ["train.ranks=2", "algo=sft"]]
)
def test_models_that_work_side_by_side_sleep_while_they_wait(overrides: list[str]) -> None:
    team = load_config(overrides).team()
    assert not take_turns(team)
    settings = process_settings(team, {})
    assert ASLEEP in settings.items() and AWAKE[0] not in settings


def test_a_model_that_judges_works_while_others_decode() -> None:
    team = load_config([]).team()
    team.reward.model = "a/reward/model"
    assert not take_turns(team)
    team.reward.model, team.reward.judge.model = "", "a/judge"
    assert not take_turns(team)


@pytest.mark.parametrize("said", [ASLEEP, ("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_what_the_users_environment_says_of_waiting_stands(said: tuple[str, str]) -> None:
    for overrides in ([], ["train.ranks=2"]):
        settings = process_settings(load_config(overrides).team(), dict([said]))
        assert {name: settings[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in settings} == dict(
            [said]
        )


def test_freed_memory_is_kept_on_a_cpu_alone() -> None:
    on_cpu, on_gpu = load_config([]).team(), load_config(["cluster=one_gpu"]).team()
    assert KEEP_FREED_MEMORY.items() <= process_settings(on_cpu, {}).items()
    assert not KEEP_FREED_MEMORY.keys() & process_settings(on_gpu, {}).keys()
