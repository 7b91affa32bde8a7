"""What holds for every objective over pairs and judged answers, whatever its formula."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from lesson_rows import PAIR, LessonRows, figures, gradient, loss_of, random_rows
from test_gradients import STEP

from engine.algorithms.base import LanguageObjective
from engine.algorithms.dpo import DPO, LossType, Reduction
from engine.algorithms.kto import KTO
from engine.algorithms.orpo import ORPO
from engine.algorithms.simpo import SimPO
from workers.lessons import Part

JUDGED = (Part.DESIRABLE, Part.UNDESIRABLE, Part.UNDESIRABLE, Part.DESIRABLE, Part.DESIRABLE, Part.UNDESIRABLE)
NUM_LESSONS = 6
POINT = 0.3
OBJECTIVES: dict[str, LanguageObjective] = {
    "dpo": DPO(beta=0.5),
    "cdpo": DPO(beta=0.5, label_smoothing=0.1),
    "robust": DPO(beta=0.5, loss_type=LossType.ROBUST, label_smoothing=0.1),
    "hinge": DPO(beta=0.5, loss_type=LossType.HINGE),
    "ipo": DPO(beta=0.5, loss_type=LossType.IPO),
    "ipo, summed": DPO(beta=0.5, loss_type=LossType.IPO, reduction=Reduction.SUM),
    "dpo, averaged": DPO(beta=0.5, reduction=Reduction.MEAN),
    "dpo with sft": DPO(beta=0.5, sft_coef=0.7),
    "ld-dpo": DPO(beta=0.5, length_desensitization=0.4),
    "kto": KTO(beta=0.5, undesirable_weight=1.3),
    "orpo": ORPO(odds_coef=0.8),
    "simpo": SimPO(),
    "simpo, smoothed": SimPO(label_smoothing=0.2),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def rows_for(objective: LanguageObjective, *, seed: int = 7) -> LessonRows:
    return random_rows(JUDGED if isinstance(objective, KTO) else PAIR * NUM_LESSONS, seed=seed)


@every_objective
def test_the_gradient_is_that_of_finite_differences(objective: LanguageObjective) -> None:
    rows = rows_for(objective)

    def value_of(moved: LessonRows) -> torch.Tensor:
        return loss_of(objective, moved, rows.totals(), point=POINT).value

    expected_BT = torch.zeros_like(rows.logprobs_BT)
    for entry in range(expected_BT.numel()):
        aside_BT = torch.zeros_like(expected_BT)
        aside_BT.view(-1)[entry] = STEP
        above, below = (replace(rows, logprobs_BT=rows.logprobs_BT + sign * aside_BT) for sign in (1, -1))
        expected_BT.view(-1)[entry] = (value_of(above) - value_of(below)) / (2 * STEP)
    actual_BT = gradient(value_of, rows)
    torch.testing.assert_close(actual_BT, expected_BT, rtol=1e-6, atol=1e-8)
    assert (actual_BT[rows.mask_BT] != 0).sum() >= 8


@every_objective
@settings(max_examples=20, deadline=None)
@given(
    order=st.permutations(range(NUM_LESSONS)),
    cuts=st.sets(st.integers(min_value=1, max_value=NUM_LESSONS - 1)),
    seed=st.integers(min_value=0, max_value=100),
)
def test_neither_split_nor_order_of_lessons_changes_anything(
    objective: LanguageObjective, order: Sequence[int], cuts: set[int], seed: int
) -> None:
    rows = rows_for(objective, seed=seed)
    totals = rows.totals()
    whole = loss_of(objective, rows, totals, point=POINT)
    whole_BT = gradient(lambda own: loss_of(objective, own, totals, point=POINT).value, rows)
    sums: dict[str, float] = dict.fromkeys(figures(whole), 0.0)
    edges = [0, *sorted(cuts), NUM_LESSONS, NUM_LESSONS]  # the last micro-batch is that of a rank without lessons
    for start, end in itertools.pairwise(edges):
        part = rows.lessons_at(order[start:end])
        share = loss_of(objective, part, totals, point=POINT)
        sums = {name: sums[name] + figure for name, figure in figures(share).items()}
        part_BT = gradient(lambda own: loss_of(objective, own, totals, point=POINT).value, part)
        torch.testing.assert_close(part_BT, _rows_of(whole_BT, rows, order[start:end]), rtol=1e-10, atol=1e-14)
    assert sums == pytest.approx(figures(whole), rel=1e-10, abs=1e-12)


def _rows_of(whole_BT: torch.Tensor, rows: LessonRows, lessons: Sequence[int]) -> torch.Tensor:
    return replace(rows, logprobs_BT=whole_BT).lessons_at(lessons).logprobs_BT


@every_objective
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_what_stands_where_nobody_looks_changes_nothing(objective: LanguageObjective, value: float) -> None:
    rows = rows_for(objective)
    spoiled = rows.spoiled(value)
    told, clean = (figures(loss_of(objective, own, rows.totals(), point=POINT)) for own in (spoiled, rows))
    assert told == pytest.approx(clean, rel=1e-12)
    gradient_BT = gradient(lambda own: loss_of(objective, own, rows.totals(), point=POINT).value, spoiled)
    own_BT = gradient(lambda own: loss_of(objective, own, rows.totals(), point=POINT).value, rows)
    torch.testing.assert_close(gradient_BT[:, :7], own_BT, rtol=1e-12, atol=1e-15)
    assert (gradient_BT[~spoiled.mask_BT] == 0).all()


@every_objective
def test_one_step_up_the_gradient_tells_the_better_answer_more_often(objective: LanguageObjective) -> None:
    """The chosen (desirable) answer gains on the other one."""
    rows = rows_for(objective)
    step_BT = -gradient(lambda own: loss_of(objective, own, rows.totals(), point=POINT).value, rows)
    gain_B = step_BT.sum(dim=-1)
    better = [row for row, part in enumerate(rows.parts) if part in (Part.CHOSEN, Part.DESIRABLE)]
    worse = [row for row, part in enumerate(rows.parts) if part in (Part.REJECTED, Part.UNDESIRABLE)]
    assert gain_B[better].sum() > gain_B[worse].sum()
