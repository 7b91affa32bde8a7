"""Two trainer ranks and two rollout engines do what one of each does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import Finished, run_main
from safetensors.numpy import load_file

SMALL = (
    "evaluation.prompts=0",
    "algo.kl_coef=0",
    "rollout.prompts_per_step=6",
    "rollout.responses_per_prompt=4",
    "train.updates_per_step=2",
    "train.tokens_per_micro_batch=64",
    "run.steps=3",
    "run.keep_rollouts_every_steps=1",
    "run.tensorboard=false",
)
TWO_OF_EACH = ("train.ranks=2", "rollout.engines=2", "reward.workers=2")
PPO = ("algo=ppo", "algo.kl_coef=0.05", "cluster.cpus_per_worker=0.5")
"""Nine workers, in the end."""
SUMS = ("loss", "policy_loss", "entropy", "gradient_norm", "reward/mean", "logprob_gap_k3")
"""Metrics that ranks contribute to; float32 sums in another order."""
OF_CRITIC = ("critic/loss", "critic/explained_variance", "critic/gradient_norm", "reward_kl", "advantage_std")


@pytest.mark.parametrize(
    ("engine", "algorithm"),
    [
        ("hf", ()),
        pytest.param("vllm", (), marks=pytest.mark.slow),
        # The whitening of advantages, the critic and the divergence in the reward go over both ranks.
        pytest.param("hf", PPO, marks=pytest.mark.slow),
    ],
    ids=["hf", "vllm", "ppo"],
)
def test_two_ranks_and_two_engines_have_the_loss_curve_of_one(
    engine: str, algorithm: tuple[str, ...], cluster: str, tmp_path: Path
) -> None:
    figures = (*SUMS, *(OF_CRITIC if algorithm else ()))

    def go(name: str, *overrides: str) -> Finished:
        place = (f"cluster.address={cluster}", f"rollout.engine={engine}")
        run = run_main(*SMALL, *algorithm, *place, *overrides, folder=tmp_path, name=name)
        assert run.exit_code == 0, run.output
        return run

    one, two = go("one"), go("two", *TWO_OF_EACH)
    for number, (step, twin) in enumerate(zip(one.steps, two.steps, strict=True), start=1):
        rollouts, same = (load_file(run.folder / f"rollouts/step_{number:06d}.safetensors") for run in (one, two))
        for name in ("draw", "sample", "token_ids", "prompt_token_ids", "version"):
            np.testing.assert_array_equal(rollouts[name], same[name])
        assert {name: step[name] for name in figures} == pytest.approx(
            {name: twin[name] for name in figures}, rel=1e-5, abs=2e-6
        )
    # The curve is one of a policy that moves: the comparison would notice a rank that did not learn.
    assert len({step["weights_checksum"] for step in one.steps}) == 3
    assert max(abs(step["policy_loss"]) for step in one.steps) > 1e-4
