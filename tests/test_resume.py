"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from runs import REPOSITORY, Finished, run_main
from safetensors.torch import load_file

SMALL = (
    "model.path=examples/nano/policy",
    "evaluation.prompts=8",
    "evaluation.samples_per_prompt=2",
    "evaluation.every_steps=2",
    "run.save_every_steps=2",
    "run.keep_rollouts_every_steps=1",
    "run.tensorboard=false",
    "rollout.prompts_per_step=4",
    "rollout.responses_per_prompt=4",
    "train.schedule=constant",
)
GRPO = (*SMALL, "train.updates_per_step=2", "algo.kl_coef=0")
SFT = (*SMALL, "algo=sft", "data=arithmetic_demos", "data.largest=9", "data.held_out=20", "train.examples_per_step=16")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster that outlives the runs on it, as on a real one: its address."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "object_store_memory": 1 << 28})
    yield cluster.address
    cluster.shutdown()


def _assert_same_run(one: Path, other: Path) -> None:
    """Metrics (but for times), rollouts and the exported weights are equal, bit for bit."""

    def metrics(folder: Path) -> list[dict[str, object]]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_s"))} for row in rows]

    assert metrics(one) == metrics(other)
    rollouts = sorted(path.name for path in (one / "rollouts").glob("*"))
    assert rollouts == sorted(path.name for path in (other / "rollouts").glob("*"))
    for name in rollouts:
        assert (one / "rollouts" / name).read_bytes() == (other / "rollouts" / name).read_bytes(), name
    weights, others = (load_file(folder / "export" / "model.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    assert all(weights[name].equal(others[name]) for name in weights)


@pytest.mark.parametrize("stage", [GRPO, SFT], ids=["grpo", "sft"])
def test_resumed_equals_never_stopped(stage: tuple[str, ...], cluster: str, tmp_path: Path) -> None:
    def go(name: str, steps: int) -> None:
        place = (f"cluster.address={cluster}", f"run.steps={steps}")
        run = run_main(*stage, *place, folder=tmp_path, name=name)
        assert run.exit_code == 0, run.output

    go("whole", 4)
    go("stopped", 2)
    go("stopped", 4)
    _assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_changed_setting_is_refused_with_the_difference(cluster: str, tmp_path: Path) -> None:
    def go(*overrides: str) -> Finished:
        place = (f"cluster.address={cluster}", "run.steps=1")
        return run_main(*SFT, *place, *overrides, folder=tmp_path, name="changed")

    first = go()
    assert first.exit_code == 0, first.output
    assert "is complete" in go().output
    other = go("run.steps=2", "train.learning_rate=0.5")
    assert other.exit_code == 2
    assert "train.learning_rate" in other.output
    assert "0.5" in other.output
    assert "Traceback" not in other.output


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_as_if_it_had_not_been(tmp_path: Path) -> None:
    stage = (*SMALL, "run.steps=8", "rollout.engine=vllm")
    whole = run_main(*stage, folder=tmp_path, name="whole")
    assert whole.exit_code == 0, whole.output
    command = [sys.executable, "-m", "engine.main", *stage, f"run.folder={tmp_path}", "run.name=killed"]
    victim = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and '"step": 5' in metrics.read_text()):
        assert time.monotonic() < deadline and victim.poll() is None
        time.sleep(0.05)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    resumed = run_main(*stage, folder=tmp_path, name="killed")
    assert resumed.exit_code == 0, resumed.output
    assert "going on after step 4" in resumed.output
    _assert_same_run(tmp_path / "whole", tmp_path / "killed")
