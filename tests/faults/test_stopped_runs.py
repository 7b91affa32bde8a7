"""A run that is asked to stop, again and again, ends as the one that nobody disturbed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.bench._disturbed import STEP, Disturbed, differences, draws, start

DAPO = (
    "algo=dapo", "algo.dynamic_sampling.draw_ahead=2.0", "algo.correction.weight=none", "rollout.engine=hf",
    "run.steps=8", "run.save_every_steps=100", "run.keep_rollouts_every_steps=1", "run.grace_s=60",
    "evaluation.prompts=8", "evaluation.every_steps=4", "rollout.prompts_per_step=4", "rollout.responses_per_prompt=4",
)  # fmt: skip
"""Steps leave groups over for the next one, which no other run could sample again."""
SFT = (
    "algo=sft", "data=arithmetic_demos", "data.largest=9", "data.held_out=20", "train.examples_per_step=16",
    "run.steps=30", "run.save_every_steps=100", "evaluation.every_steps=10", "tuning=lora", "tuning.dropout=0.2",
)  # fmt: skip
"""Dropout is drawn anew in each update, and is the same one in a run that goes on."""
PATIENCE_S = 240.0


def until_line(run: Disturbed, text: str) -> None:
    run.until(lambda: run.has_said(text), timeout_s=PATIENCE_S)


@pytest.mark.parametrize(
    ("stage", "stops"), [(DAPO, (2, 5)), pytest.param(SFT, (3, 11), marks=pytest.mark.slow)], ids=["dapo", "sft-lora"]
)
def test_a_run_that_was_stopped_twice_is_bit_for_bit_the_run_that_was_not(
    stage: tuple[str, ...], stops: tuple[int, ...], tmp_path: Path
) -> None:
    whole = start(stage, folder=tmp_path, name="whole")
    assert whole.wait(timeout_s=PATIENCE_S) == 0, whole.output
    for step, number in zip(stops, (signal.SIGTERM, signal.SIGINT), strict=True):
        run = start(stage, folder=tmp_path, name="stopped")
        until_line(run, f" step {step}/")
        began = time.monotonic()
        run.process.send_signal(number)
        assert run.wait(timeout_s=PATIENCE_S) == 128 + number, run.output
        assert time.monotonic() - began < 30
        assert not run.left_over()
        done = max(int(found[1]) for line in run.lines if (found := STEP.search(line.text)))
        assert f"stopped by {number.name} after step {done}" in run.output and "Traceback" not in run.output
        assert (run.folder / "checkpoints" / f"step_{done:06d}").is_dir()
    last = start(stage, folder=tmp_path, name="stopped")
    assert last.wait(timeout_s=PATIENCE_S) == 0, last.output
    assert f"going on after step {done}" in last.output
    assert not differences(whole.folder, last.folder, engine="hf")
    assert draws(whole.folder) == draws(last.folder)
    if stage is DAPO:
        assert any((folder / "carried.jsonl").exists() for folder in (last.folder / "checkpoints").iterdir())


def test_a_run_that_is_asked_to_stop_before_its_first_step_ends_with_nothing_to_save(tmp_path: Path) -> None:
    run = start(DAPO, folder=tmp_path, name="early")
    until_line(run, "starting reward 0")
    run.process.terminate()
    assert run.wait(timeout_s=PATIENCE_S) == 143, run.output
    assert not run.left_over() and not (run.folder / "checkpoints").exists()
    assert "stopped by SIGTERM" in run.output and "Traceback" not in run.output
