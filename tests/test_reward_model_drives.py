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


# ----------------------------------------------------------------------------- what was learned drives what is learned

TAUGHT = ("algo=rm", "algo.center_coef=0.01", "data.near_misses=[1]", "train.learning_rate=1e-3")
TAUGHT += ("train.schedule=constant", "train.examples_per_step=64", "run.steps=150")
"""Preferences between a true sum and the error that the policy makes most often."""
DRIVEN = ("run.steps=30", "train.learning_rate=2e-4", "evaluation.prompts=200", "algo.kl_coef=0.5")
"""Near the reference: elsewhere lie errors that the reward model never saw, and takes for truth. (With a kl_coef of
0.001 the policy finds them: its score rises as high, and its share of true sums halves.)"""
OWN = {"grpo": ("algo.scale=none",), "ppo": ()}
"""A divergence has its weight beside scores as they are, not in units of a group's spread."""


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """One that learned preferences, and one that learned them with labels by chance."""
    folder = tmp_path_factory.mktemp("judges")
    runs = {
        "taught": run_main(*TAUGHT, folder=folder, name="taught"),
        "by chance": run_main(*TAUGHT, "data.mislabelled_share=0.5", folder=folder, name="by_chance"),
    }
    for run in runs.values():
        assert run.exit_code == 0, run.output
    return runs


def driven(judge: Finished, algorithm: str, folder: Path) -> Finished:
    run = run_main(
        f"algo={algorithm}",
        f"reward.model={judge.folder / 'export'}",
        *OWN[algorithm],
        *DRIVEN,
        *BY_A_MODEL,
        folder=folder,
        name="driven",
    )
    assert run.exit_code == 0, run.output
    return run


def true_sums(run: Finished) -> tuple[float, float]:
    """The share of true sums among held-out samples, before and after."""
    before, *_, after = [row["held_out/exact"] for row in run.metrics if "held_out/exact" in row]
    return before, after


@pytest.mark.slow
def test_a_reward_model_knows_what_it_was_taught(judges: dict[str, Finished]) -> None:
    assert judges["taught"].metrics[-1]["held_out/accuracy"] >= 0.9
    assert abs(judges["by chance"].metrics[-1]["held_out/accuracy"] - 0.5) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_it_drives_a_policy_to_true_sums(judges: dict[str, Finished], algorithm: str, tmp_path: Path) -> None:
    run = driven(judges["taught"], algorithm, tmp_path)
    assert run.steps[-1]["reward/mean"] > run.steps[0]["reward/mean"] + 1
    before, after = true_sums(run)
    assert after > before + 0.15


@pytest.mark.slow
def test_one_that_was_taught_by_chance_drives_it_nowhere_near(judges: dict[str, Finished], tmp_path: Path) -> None:
    before, after = true_sums(driven(judges["by chance"], "grpo", tmp_path))
    assert after < before + 0.1
