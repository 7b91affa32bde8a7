"""The critic's trainer: values where the tokens are predicted, and plain full-batch AdamW on the value loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from plain_training import Plain, action_mask, context_of, distance, plain_critic, same_bits, summed
from tiny import ALL, EACH, ODD, count, made_up, toy_groups, toy_rows
from trainers import Call, TrainerProcesses, UpdateRows, learn_values, step_of, trainer_setup
from transformers import AutoModelForSequenceClassification

from engine.algorithms.ppo import PPO
from workers.config import Schedule
from workers.train_worker import TrainerSetup

slow = pytest.mark.slow
ALGORITHM = PPO(value_clip=0.05)
"""Tight enough for values to reach it."""
LESSONS = ((toy_rows((0, 1)), toy_rows((2, 3))), (toy_rows((4, 5)),))
"""Three updates; the first lesson's second sees values that have moved."""
WEIGHTS: Call = ("weights", ())


@pytest.fixture(scope="module")
def reward_model(folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.write_reward_model(tmp_path_factory.mktemp("reward-model"), folder)


def steps(lessons: Sequence[UpdateRows], *, ranks: int = 1, **more: Any) -> list[Call]:
    return [("step", (step_of(lesson, ALGORITHM, ranks=ranks, **more),)) for lesson in lessons]


def run(trainer: TrainerProcesses, setup: TrainerSetup, *calls: Call) -> list[list[Any]]:
    """Each rank's answers."""
    return trainer(learn_values, setup, calls)


# ----------------------------------------------------------------------------- values


@pytest.mark.parametrize(("ranks", "stage", "budget"), [(1, 1, ODD), (1, 3, EACH), (2, 3, ODD)])
def test_a_value_is_what_the_plain_classifier_says_of_all_that_comes_before_the_token(
    processes: dict[int, TrainerProcesses], reward_model: str, ranks: int, stage: int, budget: int
) -> None:
    step = step_of(LESSONS[0], ALGORITHM, ranks=ranks)
    setup = trainer_setup(reward_model, zero_stage=stage, tokens_per_micro_batch=budget)
    calls = [[("values", (share, *reversed(step.groups)))] for share in step.batch.shares]
    answers = processes[ranks](learn_values, setup, by_rank=calls)
    classifier = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32)
    for rank, (said,) in enumerate(answers):
        values_BT = said["values_BT"]
        assert values_BT.dtype == np.float32 and len(values_BT) == len(step.rows(rank))
        for number, row in enumerate(step.rows(rank)):
            tokens_1S, prompt = context_of(row)
            with torch.no_grad():
                ends = range(prompt, tokens_1S.shape[1])
                alone = [classifier(input_ids=tokens_1S[:, :end]).logits.item() for end in ends]
            np.testing.assert_allclose(values_BT[number, : len(alone)], alone, atol=2e-6, rtol=1e-6)
            assert not values_BT[number, len(alone) :].any()


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (1, 3), (2, 3)])
def test_on_a_language_model_the_critic_expects_nothing_at_first(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, stage: int
) -> None:
    step = step_of(LESSONS[0], ALGORITHM, ranks=ranks)
    setup = trainer_setup(folder, zero_stage=stage)
    calls = [[("values", (share, *step.groups)), WEIGHTS] for share in step.batch.shares]
    for said, weights in processes[ranks](learn_values, setup, by_rank=calls):
        assert not said["values_BT"].any()
        assert weights["score.weight"].shape == (1, 32) and not weights["score.weight"].any()
        assert weights["model.norm.weight"].any(), "the body is the language model's"


@pytest.mark.parametrize("stage", [1, 3])
def test_a_reward_model_brings_its_head_along(
    processes: dict[int, TrainerProcesses], reward_model: str, stage: int
) -> None:
    ((weights,),) = run(processes[1], trainer_setup(reward_model, zero_stage=stage), WEIGHTS)
    saved = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32)
    assert weights["score.weight"].abs().max() > 0.1
    assert same_bits(weights, dict(saved.named_parameters()))


# ----------------------------------------------------------------------------- learning


PADDED, PACKED = False, True
QUICK = {
    (1, 0, ALL, PADDED), (1, 1, EACH, PADDED), (1, 3, ODD, PADDED), (2, 0, EACH, PADDED), (2, 1, ODD, PADDED),
    (2, 2, ALL, PADDED), (2, 3, EACH, PADDED), (1, 1, ODD, PACKED), (2, 3, ODD, PACKED),
}  # fmt: skip
EVERY = [
    pytest.param(*way, marks=() if way in QUICK else slow)
    for way in product((1, 2), (0, 1, 2, 3), (ALL, EACH, ODD), (PADDED, PACKED))
]


@pytest.fixture(scope="module")
def expected(reward_model: str) -> Plain:
    return plain_critic(trainer_setup(reward_model), LESSONS, value_clip=ALGORITHM.value_clip)


@pytest.mark.parametrize(("ranks", "stage", "budget", "packing"), EVERY)
def test_three_updates_are_those_of_plain_full_batch_adamw(
    processes: dict[int, TrainerProcesses], reward_model: str, expected: Plain,
    ranks: int, stage: int, budget: int, packing: bool,
) -> None:  # fmt: skip
    setup = trainer_setup(reward_model, zero_stage=stage, tokens_per_micro_batch=budget, packing=packing)
    answers = run(processes[ranks], setup, *steps(LESSONS, ranks=ranks), WEIGHTS)
    weights = answers[0][2]
    assert all(same_bits(answer[2], weights) for answer in answers), "all ranks hold the same weights"
    # Measured: 1e-6. Three updates move a weight by up to 3e-3.
    assert distance(weights, expected.weights) < 1e-5
    for number, updates in enumerate((slice(0, 2), slice(2, 3))):
        reports = [answer[number] for answer in answers]
        losses, norms = expected.losses[updates], expected.norms[updates]
        assert summed(reports, "loss") == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        assert summed(reports, "gradient_norm") == pytest.approx(sum(norms) / len(norms), rel=3e-6)
        tokens = sum(count(rows, toy_groups()).tokens for rows in LESSONS[number])
        assert sum(report.action_tokens for report in reports) == tokens
        assert all(report.skipped_updates == 0 for report in reports)
    assert summed([answer[0] for answer in answers], "value_clipped") > 0


def test_a_critic_that_starts_at_zero_learns_in_two_epochs_as_plain_pytorch_does(
    processes: dict[int, TrainerProcesses], folder: str
) -> None:
    setup = trainer_setup(folder, zero_stage=1, tokens_per_micro_batch=ODD, epochs_per_step=2)
    plain = plain_critic(setup, LESSONS[:1], value_clip=ALGORITHM.value_clip)
    report, weights = run(processes[2], setup, *steps(LESSONS[:1], ranks=2), WEIGHTS)[0]
    assert len(plain.losses) == 4
    assert distance(weights, plain.weights) < 1e-5
    # From a head of zero only the head can learn at first; then the body does too.
    start = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).state_dict()
    assert not torch.equal(weights["model.norm.weight"], start["model.norm.weight"])
    assert report.skipped_updates == 0


def test_nan_where_the_mask_is_off_changes_no_bit(processes: dict[int, TrainerProcesses], reward_model: str) -> None:
    setup = trainer_setup(reward_model, tokens_per_micro_batch=ODD)
    clean = run(processes[1], setup, *steps(LESSONS), WEIGHTS)[0]
    poisoned_steps = steps(LESSONS, groups=toy_groups(poison=True), filler=nan)
    poisoned = run(processes[1], setup, *poisoned_steps, WEIGHTS)[0]
    assert same_bits(clean[2], poisoned[2])
    assert clean[:2] == poisoned[:2], "reports too"


def test_a_return_that_is_not_finite_skips_the_update_and_leaves_no_trace(
    processes: dict[int, TrainerProcesses], reward_model: str
) -> None:
    (step,) = [args[0] for _, args in steps(LESSONS[1:])]
    (share,) = step.batch.shares
    broken_BT = made_up(tiny.return_of, step.rows(0), step.groups)
    broken_BT[-1, 0] = np.inf
    assert action_mask(step.rows(0)[-1])[0]
    broken: list[Call] = [("values", (share, *step.groups)), ("update", (ALGORITHM, {"returns_BT": broken_BT}))]
    setup = trainer_setup(reward_model, zero_stage=1)
    before, _, report, after = run(processes[1], setup, WEIGHTS, *broken, WEIGHTS)[0]
    assert report.skipped_updates == 1 and same_bits(before, after)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), pytest.param(2, 1, marks=slow), pytest.param(2, 3, marks=slow)])
def test_a_resumed_critic_goes_on_bit_for_bit(
    processes: dict[int, TrainerProcesses], reward_model: str, tmp_path: Path, ranks: int, stage: int
) -> None:
    setup = trainer_setup(
        reward_model, zero_stage=stage, tokens_per_micro_batch=ODD, total_updates=6, schedule=Schedule.LINEAR
    )
    first, second = steps(LESSONS, ranks=ranks)
    straight = run(processes[ranks], setup, first, second, WEIGHTS)
    run(processes[ranks], setup, first, ("save", (tmp_path,)))
    resumed = run(processes[ranks], setup, ("load", (tmp_path,)), second, WEIGHTS)
    assert (tmp_path / "critic").is_dir(), "beside the policy's"
    assert same_bits(resumed[0][2], straight[0][2])
    assert [answer[1] for answer in resumed] == [answer[1] for answer in straight], "reports too"
    assert resumed[0][1].contributions["learning_rate"] == pytest.approx(1e-3 * 4 / 6)
