"""What is left out while an adapter learns hangs on the run's seed, the update and the rank, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plain_training import same_bits, summed
from tiny import ODD, deal, share_of, text_of, toy_groups, toy_rows
from trainers import WEIGHTS, Call, TrainerProcesses, run, trainer_setup

from engine.algorithms.sft import SFT
from workers.config import TuningConfig, TuningMethod
from workers.records import Row
from workers.tally import UpdateReport
from workers.train_worker import TrainerSetup

slow = pytest.mark.slow
LESSONS = tuple(toy_rows(draws) for draws in ((0, 1), (2, 3), (4, 5), (0, 1)))
LORA = TuningConfig(method=TuningMethod.LORA, rank=4, dropout=0.3)


def setup_of(folder: str, *, tuning: TuningConfig = LORA, **train: Any) -> TrainerSetup:
    settings = {"tokens_per_micro_batch": ODD, "learning_rate": 1e-2, "weight_decay": 0.0}
    return replace(trainer_setup(folder, **(settings | train)), tuning=tuning)


def calls_of(lessons: Sequence[Sequence[Row]], *, ranks: int, swapped: bool = False) -> list[list[Call]]:
    """By rank; `swapped`: each of two ranks gets the other's rows."""
    groups, calls = toy_groups(), [[] for _ in range(ranks)]
    for rows in lessons:
        updates = deal(rows, groups, ranks=ranks)
        for own, update in zip(calls, reversed(updates) if swapped else updates, strict=True):
            own.append(("fit", (share_of([text_of(row, groups) for row in update.rows]), update.totals, SFT())))
    return calls


def norms(processes: dict[int, TrainerProcesses], setup: TrainerSetup, calls: list[list[Call]]) -> list[float]:
    """Of each update's gradient."""
    answers = run(processes[len(calls)], setup, calls)
    reports: list[tuple[UpdateReport, ...]] = list(zip(*answers, strict=True))
    return [summed(of_update, "gradient_norm") for of_update in reports]


@pytest.mark.parametrize(
    ("ranks", "stage", "again"),
    [(1, 1, False), (2, 3, False), (1, 1, True), pytest.param(2, 1, False, marks=slow)],
    ids=lambda value: str(value),
)
def test_a_trainer_that_was_stopped_leaves_out_what_it_would_have(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path, ranks: int, stage: int, again: bool
) -> None:
    # Computed again for want of memory, a layer must leave out the same as at first.
    setup = setup_of(folder, zero_stage=stage, activations_gib=1e-9 if again else 0.0)
    calls = calls_of(LESSONS, ranks=ranks)
    straight = run(processes[ranks], setup, calls, WEIGHTS)
    run(processes[ranks], setup, [own[:2] for own in calls], ("save", (tmp_path,)))
    resumed = run(processes[ranks], setup, [[("load", (tmp_path,)), *own[2:]] for own in calls], WEIGHTS)
    assert same_bits(resumed[0][3], straight[0][4])
    assert [answers[1:3] for answers in resumed] == [answers[2:4] for answers in straight]


def test_layers_that_are_computed_again_learn_the_same_bits_with_it(
    processes: dict[int, TrainerProcesses], folder: str
) -> None:
    one, other = (
        run(processes[1], setup_of(folder, activations_gib=budget), calls_of(LESSONS, ranks=1), WEIGHTS)[0][4]
        for budget in (0.0, 1e-9)
    )
    assert same_bits(one, other)


def test_every_update_every_rank_and_every_seed_leaves_out_something_else(
    processes: dict[int, TrainerProcesses], folder: str
) -> None:
    # Nothing moves at a learning rate of 0: what the same rows say differs only by what is left out.
    still, without = (setup_of(folder, tuning=replace(LORA, dropout=d), learning_rate=0.0) for d in (0.3, 0.0))
    twice = calls_of([LESSONS[0], LESSONS[0]], ranks=1)
    first, second = norms(processes, still, twice)
    assert first != second
    assert norms(processes, still, twice) == [first, second]
    whole, whole_again = norms(processes, without, twice)
    assert whole == whole_again and whole not in (first, second)
    # As the adapter's first matrix is drawn from the seed too, a seed is told apart by the ratio of two updates.
    other_first, other_second = norms(processes, replace(still, seed=5), twice)
    assert other_first / other_second != pytest.approx(first / second, rel=1e-4)
    plain, swapped = (norms(processes, still, calls_of(LESSONS[:1], ranks=2, swapped=swap)) for swap in (False, True))
    assert plain != pytest.approx(swapped, rel=1e-4)
    plain, swapped = (norms(processes, without, calls_of(LESSONS[:1], ranks=2, swapped=swap)) for swap in (False, True))
    assert plain == pytest.approx(swapped, rel=1e-5)
