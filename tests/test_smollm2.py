"""A pre-trained language model on real rows. Slow, and needs a folder that `examples/smollm2` says how to make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runs import REPOSITORY, run_main

SMOLLM2 = Path(os.environ.get("HELIOSTAT_SMOLLM2", REPOSITORY / "build" / "smollm2-135m"))
GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k" / "train.jsonl"


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.exists(), reason=f"no model in {SMOLLM2}; set HELIOSTAT_SMOLLM2")
@pytest.mark.skipif(not GSM8K.exists(), reason="no GSM8K rows beside the repository")
def test_five_grpo_steps_on_gsm8k(tmp_path: Path) -> None:
    run = run_main(
        "model=smollm2-135m",
        f"model.path={SMOLLM2}",
        "data=gsm8k",
        f"data.path={GSM8K}",
        "data.shots=2",
        "rollout.prompts_per_step=4",
        "rollout.responses_per_prompt=8",
        "rollout.max_response_tokens=100",
        "evaluation.prompts=0",
        "run.steps=5",
        folder=tmp_path,
        name="gsm8k",
        timeout_s=1800,
    )
    assert run.exit_code == 0, run.output
    assert len(run.steps) == 5
    assert run.summary["logprob_gap_max"] < 1e-2
    assert abs(run.steps[0]["kl"]) < 1e-6
    assert all(row["weights_checksum"] and row["weights_bytes"] > 5e8 for row in run.steps)
    assert all(0 <= row["reward/mean"] <= 1 for row in run.steps)
