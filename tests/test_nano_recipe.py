"""nano's recipe, from nothing: what it makes is as good, and as bad, as what is shipped. Minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Finished, run_main

pytestmark = pytest.mark.slow


def accuracy_of(model: Path | None, folder: Path) -> Finished:
    """Measured as every online run measures its policy before the first step."""
    path = [f"model.path={model}", "model=nano"] if model else []
    small = ["rollout.prompts_per_step=2", "rollout.responses_per_prompt=2", "run.steps=1", "evaluation.prompts=400"]
    run = run_main("train.learning_rate=0", *path, *small, folder=folder, name="rebuilt" if model else "shipped")
    assert run.exit_code == 0, run.output
    return run


def test_one_command_makes_a_policy_as_good_as_the_shipped_one(tmp_path: Path) -> None:
    made = run_main("experiment=nano_base", folder=tmp_path, name="nano_base", timeout_s=3600)
    assert made.exit_code == 0, made.output

    shipped, rebuilt = (accuracy_of(model, tmp_path).summary for model in (None, made.folder / "export"))
    # Of 1,600 samples, two standard errors each: a rule of thumb for "the same" (another machine rounds otherwise).
    assert rebuilt["held_out_before"] == pytest.approx(shipped["held_out_before"], abs=0.05)
    assert rebuilt["held_out_greedy_before"] == pytest.approx(shipped["held_out_greedy_before"], abs=0.05)
