"""A reward model that learned from preferences is the reward that a policy learns from, and the policy gets better at
what nobody told it: the true sum."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import REPOSITORY, Finished, run_main

NANO = REPOSITORY / "examples" / "nano" / "policy"
BY_A_MODEL = ("reward.function_weight=0", "rollout.engine=hf", "run.tensorboard=false")
"""The function is only looked at: `held_out/exact`."""


def random_judge(folder: Path) -> Path:
    """A reward model that has learned nothing."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(NANO, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO / name, folder / name)
    return folder


def test_a_run_is_judged_by_a_model_alone_and_beside_a_function(tmp_path: Path) -> None:
    judge = random_judge(tmp_path / "judge")
    small = ("run.steps=2", "rollout.prompts_per_step=4", "evaluation.prompts=10", "algo=remax", *BY_A_MODEL[1:])
    run = run_main(f"reward.model={judge}", "reward.function_weight=0.5", *small, folder=tmp_path, name="beside")
    assert run.exit_code == 0, run.output
    for row in run.steps:
        assert row["reward/mean"] == pytest.approx(0.5 * row["reward/exact"] + row["reward/reward_model"], rel=1e-6)
        assert row["reward/greedy_responses"] == 4 and row["reward/unjudged_share"] == 0
    assert {"held_out/exact", "held_out/greedy_reward_model"} <= run.metrics[-1].keys()
