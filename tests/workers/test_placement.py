"""Devices that a cluster does not have are told by name and number, not waited for for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import run_main

from workers.config import (
    ClusterConfig,
    CriticConfig,
    Device,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    TeamConfig,
    TrainConfig,
    TuningConfig,
)
from workers.places import places_for


def team(**changes: object) -> TeamConfig:
    settings = {
        "model": ModelConfig(),
        "train": TrainConfig(ranks=2),
        "rollout": RolloutConfig(engines=3),
        "reward": RewardConfig(),
        "cluster": ClusterConfig(),
        "critic": CriticConfig(),
        "tuning": TuningConfig(),
        "seed": 0,
        "policy_updates": 1,
        "critic_updates": 1,
        "log_folder": "logs",
        "rollout_workers": True,
        "reference": True,
        "reference_follows": False,
        "has_critic": False,
        "policy_judges": False,
    }
    return TeamConfig(**(settings | changes))


def test_everybody_has_a_place_and_offline_nobody_generates() -> None:
    assert [place.name for place in places_for(team())] == [
        *("policy 0", "policy 1"),
        *("rollout 0", "rollout 1", "rollout 2"),
        *("reward 0", "reference 0"),
    ]
    assert [place.role for place in places_for(team(rollout_workers=False, reference=False))] == ["policy", "policy"]


def test_a_critic_has_as_many_ranks_as_the_policy() -> None:
    roles = [place.role for place in places_for(team(has_critic=True))]
    assert roles.count("critic") == roles.count("policy") == 2
    on_gpu = team(has_critic=True, cluster=ClusterConfig(device=Device.CUDA))
    assert all(place.gpus == 1.0 for place in places_for(on_gpu) if place.role == "critic")


def test_only_models_ask_for_gpus_and_fractions_mean_taking_turns() -> None:
    alone = team(cluster=ClusterConfig(device=Device.CUDA))
    assert {place.role for place in places_for(alone) if place.gpus} == {"policy", "rollout", "reference"}
    assert not alone.shares_devices
    together = ClusterConfig(device=Device.CUDA, gpus_per_trainer=0.3, gpus_per_engine=0.3)
    assert team(cluster=together).shares_devices
    assert not any(place.gpus for place in places_for(team()))


def test_too_few_devices_end_the_run_with_what_was_asked_for_and_what_there_is(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster)  # joined, because cluster.address is empty
    asked = ("cluster.cpus_per_worker=50", "cluster.placement_timeout_s=2")
    run = run_main(*asked, folder=tmp_path, name="too_large")
    assert run.exit_code == 1
    assert "CPU: 200 asked, 8 in the cluster" in run.output
    assert "Traceback" not in run.output
