"""Whoever is killed in the middle of a run, the run ends as the one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from runs import REPOSITORY, Finished, run_main

from engine.verify import verify

SETTINGS = (
    "run.steps=10",
    "run.save_every_steps=5",
    "run.keep_rollouts_every_steps=1",
    "run.tensorboard=false",
    "evaluation.prompts=8",
    "evaluation.every_steps=5",
    "rollout.prompts_per_step=8",
    "rollout.responses_per_prompt=4",
    "train.schedule=constant",
)
PATIENCE_S = 240.0


def where(run: Path, worker: str) -> dict[str, float]:
    return json.loads((run / "logs" / f"{worker}.where").read_text())


def until_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Until the run has done so many steps."""
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + PATIENCE_S
    while not (metrics.exists() and f'"step": {step}, "reward' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def disturbed(folder: Path, *killed: tuple[int, str], more: tuple[str, ...] = ()) -> tuple[int, str]:
    """A run whose workers are killed, each after a step. Its exit code, and what it printed."""
    command = [sys.executable, "-m", "engine.main", *SETTINGS, *more, f"run.folder={folder}", "run.name=disturbed"]
    run = folder / "disturbed"
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for step, worker in killed:
            until_step(run, step, process)
            before = where(run, worker)
            os.kill(int(before["pid"]), signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    run = run_main(*SETTINGS, folder=tmp_path_factory.mktemp("faults"), name="whole")
    assert run.exit_code == 0, run.output
    return run


def test_a_run_whose_workers_are_killed_is_bit_for_bit_the_run_that_was_left_alone(whole: Finished) -> None:
    folder = whole.folder.parent
    killed = ((1, "reward_0"), (3, "rollout_0"), (5, "reference_0"))
    exit_code, output = disturbed(folder, *killed)
    assert exit_code == 0, output
    run = folder / "disturbed"
    log = (run / "logs" / "rollout_0.log").read_text()
    assert "in place of one that died: serving version" in log, "otherwise no engine was replaced"
    for aspect in verify(whole.folder, run, tolerance=0.0):
        assert aspect.compared and not aspect.differences, aspect.told()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(run) in " ".join(p.info["cmdline"] or ())]


@pytest.mark.parametrize("more", [(), pytest.param(("train.ranks=2",), marks=pytest.mark.slow)], ids=["alone", "ranks"])
def test_a_run_whose_trainer_is_killed_goes_on_from_its_checkpoint_to_the_same_end(
    more: tuple[str, ...], whole: Finished, tmp_path: Path
) -> None:
    undisturbed = whole
    if more:
        undisturbed = run_main(*SETTINGS, *more, folder=tmp_path, name="whole")
        assert undisturbed.exit_code == 0, undisturbed.output
    exit_code, output = disturbed(tmp_path, (7, "policy_0"), more=more)
    assert exit_code == 0, output
    assert "heliostat: policy 0 died while it was to" in output
    assert "going on from the newest checkpoint (run.max_restarts: 3 left)" in output
    assert "going on after step 5" in output
    for aspect in verify(undisturbed.folder, tmp_path / "disturbed", tolerance=0.0):
        assert aspect.compared and not aspect.differences, aspect.told()


@pytest.mark.slow
def test_a_run_that_may_not_restart_stops_when_its_trainer_dies(tmp_path: Path) -> None:
    exit_code, output = disturbed(tmp_path, (1, "policy_0"), more=("run.max_restarts=0",))
    assert exit_code == 1 and "the run stopped: policy 0 died while it was to" in output


@pytest.mark.slow
def test_a_worker_that_dies_more_often_than_it_may_ends_the_run_with_its_name(tmp_path: Path) -> None:
    killed = ((1, "reward_0"), (2, "reward_0"))
    exit_code, output = disturbed(tmp_path, *killed, more=("cluster.worker_restarts=1", "run.max_restarts=0"))
    assert exit_code == 1
    assert "reward 0 died while it was to score a group" in output
    assert f"the last lines of {tmp_path}/disturbed/logs/reward_0.log" in output
