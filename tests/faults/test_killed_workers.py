"""Whoever is killed in the middle of a run, the run ends as the one that nobody disturbed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from runs import Finished, run_main

from engine.verify import verify
from tests.bench._disturbed import Disturbed, start

SETTINGS = (
    "run.steps=10",
    "run.save_every_steps=5",
    "run.keep_rollouts_every_steps=1",
    "run.tensorboard=false",
    "run.show_responses_every_steps=0",
    "evaluation.prompts=8",
    "evaluation.every_steps=5",
    "rollout.prompts_per_step=8",
    "rollout.responses_per_prompt=4",
    "train.schedule=constant",
)
PATIENCE_S = 240.0
DRIVER = "the run's own process"


def until_step(run: Disturbed, step: int) -> None:
    """Until the run has done so many steps."""
    metrics, written = run.folder / "metrics.jsonl", f'"step": {step}, "reward'
    run.until(lambda: metrics.exists() and written in metrics.read_text(), timeout_s=PATIENCE_S)


def disturbed(folder: Path, *killed: tuple[int, str], more: tuple[str, ...] = ()) -> tuple[int, str]:
    """A run of which somebody is killed, each after a step. Its exit code, and what it printed."""
    run = start((*SETTINGS, *more), folder=folder, name="disturbed")
    for step, who in killed:
        until_step(run, step)
        victim = run.driver if who == DRIVER else run.worker(who)
        assert victim is not None
        victim.send_signal(signal.SIGKILL)
    code = run.wait(timeout_s=PATIENCE_S)
    assert not run.left_over()
    return code, run.output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    run = run_main(*SETTINGS, folder=tmp_path_factory.mktemp("faults"), name="whole")
    assert run.exit_code == 0, run.output
    return run


def assert_equal(whole: Path, run: Path) -> None:
    for aspect in verify(whole, run, tolerance=0.0):
        assert aspect.compared and not aspect.differences, aspect.told()


def test_a_run_whose_workers_are_killed_is_bit_for_bit_the_run_that_was_left_alone(
    whole: Finished, tmp_path: Path
) -> None:
    exit_code, output = disturbed(tmp_path, (1, "reward_0"), (3, "rollout_0"), (5, "reference_0"))
    assert exit_code == 0, output
    log = (tmp_path / "disturbed" / "logs" / "rollout_0.log").read_text()
    assert "in place of one that died: serving version" in log, "otherwise no engine was replaced"
    for name in ("reward 0", "rollout 0", "reference 0"):
        assert output.count(f"{name} died and was replaced") == 1, output
    assert_equal(whole.folder, tmp_path / "disturbed")


@pytest.mark.parametrize("more", [(), pytest.param(("train.ranks=2",), marks=pytest.mark.slow)], ids=["alone", "ranks"])
def test_a_run_whose_trainer_and_own_process_are_killed_goes_on_from_its_checkpoint_to_the_same_end(
    more: tuple[str, ...], whole: Finished, tmp_path: Path
) -> None:
    undisturbed = whole
    if more:
        undisturbed = run_main(*SETTINGS, *more, folder=tmp_path, name="whole")
        assert undisturbed.exit_code == 0, undisturbed.output
    exit_code, output = disturbed(tmp_path, (7, "policy_0"), (8, DRIVER), more=more)
    assert exit_code == 0, output
    assert "policy 0 died while it was to" in output
    assert "the run's process was killed by SIGKILL" in output
    assert "going on from the newest checkpoint (run.max_restarts: 2 left)" in output
    assert "going on from the newest checkpoint (run.max_restarts: 1 left)" in output
    assert output.count("going on after step 5") == 2
    assert_equal(undisturbed.folder, tmp_path / "disturbed")


@pytest.mark.slow
def test_a_run_that_may_not_restart_stops_when_its_trainer_dies(tmp_path: Path) -> None:
    exit_code, output = disturbed(tmp_path, (1, "policy_0"), more=("run.max_restarts=0",))
    assert exit_code == 3 and "the run stopped: policy 0 died while it was to" in output


@pytest.mark.slow
def test_a_worker_that_dies_more_often_than_it_may_ends_the_run_with_its_name(tmp_path: Path) -> None:
    killed = ((1, "reward_0"), (2, "reward_0"))
    exit_code, output = disturbed(tmp_path, *killed, more=("cluster.worker_restarts=1", "run.max_restarts=0"))
    assert exit_code == 3
    assert "reward 0 died while it was to score a group" in output
    assert f"the last lines of {tmp_path}/disturbed/logs/reward_0.log" in output
