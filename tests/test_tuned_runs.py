"""Every tuning through the real command: the critic is tuned as the policy is, and only what must travels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from runs import Finished, run_main

pytestmark = pytest.mark.slow

WHOLE = 3_207_680
"""Bytes of nano's weights."""
SHORT = ("rollout.prompts_per_step=4", "rollout.responses_per_prompt=4", "evaluation.prompts=0", "run.steps=2")
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}


def files(run: Finished) -> set[str]:
    return {path.name for path in (run.folder / "export").iterdir()}


def healthy(run: Finished, *, steps: int = 2) -> None:
    assert run.exit_code == 0, run.output
    assert len(run.steps) == steps
    for row in run.steps:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
        assert row["skipped_updates"] == 0 and row["gradient_norm"] > 0
        assert row["logprob_gap_max"] < 1e-4


@pytest.mark.parametrize("tuning", ["full", "freeze", "lora", "qlora", "oft", "qoft"])
@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_two_steps_are_finite_and_engine_and_trainer_agree(tmp_path: Path, algo: str, tuning: str) -> None:
    more = ("algo.kl_coef=0.05",) if algo == "grpo" else ()
    run = run_main(f"algo={algo}", f"tuning={tuning}", *more, *SHORT, folder=tmp_path, name="run")
    healthy(run)
    sent = [row["weights_bytes"] for row in run.steps]
    if tuning in ("lora", "qlora"):
        assert max(sent) < 0.1 * WHOLE
        assert "only the adapter's tensors travel to the rollout engines" in run.output
    else:
        assert set(sent) == {float(WHOLE)}
    if algo == "ppo":
        assert all(row["critic/gradient_norm"] > 0 for row in run.steps)
    assert run.steps[0]["kl"] == pytest.approx(0, abs=1e-6), "the reference is the policy that the run starts from"
    assert (files(run) >= ADAPTER_FILES) is (tuning not in ("full", "freeze"))


def test_an_adapter_of_an_earlier_run_is_merged_or_gone_on_with_and_a_stopped_run_resumes(tmp_path: Path) -> None:
    sft = ("algo=sft", "data=arithmetic_demos", "tuning=lora", "data.copies=1", "evaluation.prompts=0", "run.steps=2")
    first = run_main(*sft, "train.learning_rate=1e-3", folder=tmp_path, name="first")
    assert first.exit_code == 0, first.output
    earlier = ("tuning=lora", f"tuning.adapters=[{first.folder / 'export'}]", "algo.kl_coef=0.05", *SHORT)

    merged = run_main(*earlier, folder=tmp_path, name="merged")
    healthy(merged)
    assert max(row["weights_bytes"] for row in merged.steps) < 0.1 * WHOLE
    again = run_main(*earlier, "run.steps=3", "train.schedule=constant", folder=tmp_path, name="merged")
    assert again.exit_code == 2 and "train.schedule" in again.output, "another schedule is another run"

    gone_on = run_main(*earlier, "tuning.continue_last=true", folder=tmp_path, name="gone_on")
    healthy(gone_on)
    assert "the reference is a frozen copy of the model" in gone_on.output
    assert gone_on.steps[0]["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("more", ["tuning.dora=true", "tuning.init=pissa", "tuning.also_train=[norm]"])
def test_what_the_rollout_engine_cannot_serve_is_merged_and_said(tmp_path: Path, more: str) -> None:
    run = run_main("tuning=lora", more, "algo.kl_coef=0.05", *SHORT, folder=tmp_path, name="run")
    healthy(run)
    assert "apart, so it is merged and all weights travel to them" in run.output
    assert all(row["weights_bytes"] == float(WHOLE) for row in run.steps)
    assert run.steps[0]["kl"] == pytest.approx(0, abs=1e-6)
