"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import REPOSITORY, Finished, forget_after, run_main
from safetensors.torch import load_file

from engine.export import export_run
from tests.bench._disturbed import differences, draws

SMALL = (
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
# What the engine's own log-probs weigh would carry its last bits into the weights.
GRPO_HF = (*GRPO, "rollout.engine=hf", "algo.correction.weight=none")
PPO_HF = (
    *SMALL,
    "algo=ppo",
    "train.updates_per_step=2",
    "algo.kl_coef=0.05",
    "algo.kl_target=0.01",
    "algo.kl_horizon=100",
    "algo.reference_refresh.every_steps=2",
    "rollout.engine=hf",
    "algo.correction.weight=none",
)
"""Everything that a checkpoint can hold: policy, critic, a reference that moved, a coefficient that was adapted."""
SFT = (*SMALL, "algo=sft", "data=arithmetic_demos", "data.largest=9", "data.held_out=20", "train.examples_per_step=16")


@pytest.mark.parametrize(
    "stage",
    [SFT, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (GRPO_HF, PPO_HF, GRPO))],
    ids=["sft", "grpo-hf", "ppo-hf", "grpo-vllm"],
)
def test_resumed_equals_never_stopped_and_another_run_is_refused(
    stage: tuple[str, ...], cluster: str, tmp_path: Path
) -> None:
    def go(name: str, *overrides: str) -> Finished:
        place = (f"cluster.address={cluster}", "run.steps=4")
        return run_main(*stage, *place, *overrides, folder=tmp_path, name=name)

    whole = go("whole")
    assert whole.exit_code == 0, whole.output
    if stage is PPO_HF:
        _assert_that_all_of_it_moved(whole)
    forget_after(tmp_path / "whole", tmp_path / "stopped", checkpoint="step_000002")
    resumed = go("stopped")
    assert resumed.exit_code == 0, resumed.output
    assert "going on after step 2" in resumed.output
    engine = "vllm" if stage is GRPO else "hf"
    assert not differences(tmp_path / "whole", tmp_path / "stopped", engine=engine)

    assert "is complete" in go("stopped").output
    record = (tmp_path / "stopped" / "config.yaml").read_text()
    refused = go("stopped", "train.learning_rate=0.5")
    assert refused.exit_code == 2
    assert "train.learning_rate" in refused.output
    assert "0.5" in refused.output
    assert "Traceback" not in refused.output
    assert (tmp_path / "stopped" / "config.yaml").read_text() == record


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "others"),
    [(GRPO_HF, ("train.ranks=2", "rollout.engines=2")), (SFT, ("train.ranks=2",))],
    ids=["grpo-hf", "sft"],
)
def test_a_run_goes_on_with_more_ranks_and_engines_to_the_same_end_but_for_rounding(
    stage: tuple[str, ...], others: tuple[str, ...], tmp_path: Path
) -> None:
    stage = (*stage, "run.steps=4", "train.zero_stage=1")
    whole = run_main(*stage, folder=tmp_path, name="whole")
    assert whole.exit_code == 0, whole.output
    export_run(whole.folder, merge=False, step=2, to=tmp_path / "halfway")
    forget_after(tmp_path / "whole", tmp_path / "stopped", checkpoint="step_000002")
    resumed = run_main(*stage, *others, folder=tmp_path, name="stopped")
    assert resumed.exit_code == 0, resumed.output
    assert "going on after step 2" in resumed.output
    assert sorted(draws(whole.folder)) == sorted(draws(resumed.folder))
    one, other = (load_file(run.folder / "export" / "model.safetensors") for run in (whole, resumed))
    halfway = load_file(tmp_path / "halfway" / "model.safetensors")
    apart, moved = (max((one[name] - to[name]).abs().max().item() for name in one) for to in (other, halfway))
    assert apart < 1e-5 < 1e-3 < moved


def test_a_run_that_was_killed_before_its_export_exports_and_keeps_what_it_measured(
    cluster: str, tmp_path: Path
) -> None:
    settings = (*SFT, "run.steps=2", f"cluster.address={cluster}")
    whole = run_main(*settings, folder=tmp_path, name="whole")
    assert whole.exit_code == 0, whole.output
    measured = whole.metrics
    shutil.rmtree(whole.folder / "export")
    (whole.folder / "summary.json").unlink()
    again = run_main(*settings, folder=tmp_path, name="whole")
    assert again.exit_code == 0 and (again.folder / "export" / "model.safetensors").exists(), again.output
    assert again.metrics == measured
    assert "is complete" in run_main(*settings, folder=tmp_path, name="whole").output
    assert again.metrics == measured


def _assert_that_all_of_it_moved(whole: Finished) -> None:
    """Otherwise nothing would be resumed that a fresh start does not have too."""
    assert (
        len({step["kl_coef"] for step in whole.steps}) == len({step["weights_checksum"] for step in whole.steps}) == 4
    )
    assert len({step["critic/loss"] for step in whole.steps}) == 4
    # The reference is the policy again after the second step.
    assert abs(whole.steps[2]["reward_kl"]) < 1e-6 < abs(whole.steps[1]["reward_kl"])
    assert (whole.folder / "checkpoints/step_000002/reference.safetensors").exists()


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
    assert not differences(tmp_path / "whole", tmp_path / "killed", engine="vllm")
