"""A run whose loss is not finite goes on after one such step, and stops after several, with what they learned from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import run_main

SETTINGS = (
    "rollout.engine=hf",
    "rollout.prompts_per_step=4",
    "rollout.responses_per_prompt=4",
    "evaluation.prompts=0",
    "run.tensorboard=false",
    "run.steps=10",
)


def test_skipped_steps_change_no_weight_and_too_many_in_a_row_stop_the_run_with_their_batches_kept(
    tmp_path: Path,
) -> None:
    algorithm = tmp_path / "broken.yaml"
    algorithm.write_text("{_target_: tests.faults.broken_loss.BrokenLoss, once: 2, from_then_on: 4}\n")
    run = run_main(f"algo={algorithm}", "checks.max_skipped_steps=1", *SETTINGS, folder=tmp_path, name="broken")
    assert run.exit_code == 1, run.output
    assert "Traceback" not in run.output
    assert [row["skipped_updates"] for row in run.steps] == [0, 1, 0, 1], "the fifth stopped the run"
    weights = [row["weights_checksum"] for row in run.steps]
    assert weights[0] == weights[1] != weights[2] == weights[3]
    assert "step 2: 1 updates skipped, their gradient was not finite" in run.output
    kept = sorted((run.folder / "rollouts").glob("*.jsonl"))
    assert [path.stem for path in kept] == ["step_000002", "step_000004", "step_000005"]
    for path in kept:
        assert path.with_suffix(".safetensors").exists()
        assert len([json.loads(line) for line in path.read_text().splitlines()]) == 16
    told = "the run stopped: 2 steps in a row had a gradient that is not finite, more than checks.max_skipped_steps=1: "
    assert told in run.output
    assert f"look at what the last of them learned from: {kept[-1]}" in run.output


@pytest.mark.slow
def test_what_a_step_learned_from_that_violates_an_invariant_is_kept_too(tmp_path: Path) -> None:
    run = run_main("checks.logprob_gap_max=1e-12", *SETTINGS, folder=tmp_path, name="apart")
    assert run.exit_code == 1 and "the run stopped: logprob_gap_max is" in run.output
    [kept] = (run.folder / "rollouts").glob("*.jsonl")
    assert kept.stem == "step_000001" and f"the step's responses are in {kept}" in run.output
