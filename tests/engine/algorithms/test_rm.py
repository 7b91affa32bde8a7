"""The reward model's loss: golden numbers, and what neither order nor split may change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lesson_rows import PAIR, LessonRows, figures, random_rows, rows_of
from loss_rows import assert_near, doubles
from torch import Tensor

from engine.algorithms.rm import RM
from engine.algorithms.settings import InvalidSetting
from workers.records import Loss, Totals

SCORES = (1.2, 0.3, 0.1, 0.4)
MARGINS = (0.5, 0.5, 0.0, 0.0)
NUM_PAIRS = 5


def golden(*, margins: Sequence[float] = (0.0,) * 4) -> LessonRows:
    return replace(rows_of(PAIR * 2, (1,) * 4, (0.0,) * 4, (0.0,) * 4), margin_B=doubles(margins))


def loss_of(objective: RM, score_B: Tensor, rows: LessonRows, totals: Totals) -> Loss:
    return objective.loss(score_B, rows.batch(), totals)


def each_alone(objective: RM, rows: LessonRows) -> Tensor:
    """The loss of each pair by itself, as if it were the whole step."""
    one = Totals(tokens=2, sequences=2, prompts=1, horizon=8)
    pairs = ([0, 1], [2, 3])
    return torch.stack([loss_of(objective, doubles(SCORES)[pair], rows.at(pair), one).value for pair in pairs])


def test_golden_losses() -> None:
    assert_near(each_alone(RM(), golden()), [0.341154, 0.854355])
    assert_near(each_alone(RM(), golden(margins=MARGINS)), [0.513015, 0.854355])
    assert_near(each_alone(RM(center_coef=0.01), golden()), [0.363654, 0.856855])


def test_figures_count_strictly_and_leave_the_margin_of_the_data_out() -> None:
    told = figures(loss_of(RM(), doubles(SCORES), golden(margins=MARGINS), golden().totals()))
    assert told["accuracy"] == 0.5
    assert told["margin"] == pytest.approx((0.9 - 0.3) / 2)
    assert told["rewards/chosen"] == pytest.approx(0.65) and told["rewards/rejected"] == pytest.approx(0.35)
    ties = figures(loss_of(RM(), doubles([0.5] * 4), golden(), golden().totals()))
    assert ties["accuracy"] == 0 and ties["value"] == pytest.approx(math.log(2), rel=1e-15)


def test_the_gradient_is_that_of_finite_differences() -> None:
    rows, objective, step = random_rows(PAIR * NUM_PAIRS), RM(center_coef=0.05), 1e-6
    score_B = torch.randn(2 * NUM_PAIRS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    leaf_B = score_B.clone().requires_grad_()
    [actual_B] = torch.autograd.grad(loss_of(objective, leaf_B, rows, rows.totals()).value, leaf_B)
    for row in range(len(score_B)):
        aside_B = torch.zeros_like(score_B)
        aside_B[row] = step
        above, below = (loss_of(objective, score_B + sign * aside_B, rows, rows.totals()).value for sign in (1, -1))
        assert actual_B[row].item() == pytest.approx((above - below).item() / (2 * step), rel=1e-6, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(range(NUM_PAIRS)),
    cuts=st.sets(st.integers(min_value=1, max_value=NUM_PAIRS - 1)),
    seed=st.integers(min_value=0, max_value=100),
)
def test_neither_split_nor_order_of_pairs_changes_anything(order: Sequence[int], cuts: set[int], seed: int) -> None:
    rows, objective = random_rows(PAIR * NUM_PAIRS, seed=seed), RM(center_coef=0.05)
    score_B = torch.randn(2 * NUM_PAIRS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    whole = figures(loss_of(objective, score_B, rows, rows.totals()))
    sums = dict.fromkeys(whole, 0.0)
    edges = [0, *sorted(cuts), NUM_PAIRS, NUM_PAIRS]
    for start, end in itertools.pairwise(edges):
        chosen = [row for pair in order[start:end] for row in (2 * pair, 2 * pair + 1)]
        share = figures(loss_of(objective, score_B[chosen], rows.at(chosen), rows.totals()))
        sums = {name: sums[name] + figure for name, figure in share.items()}
    assert sums == pytest.approx(whole, rel=1e-10, abs=1e-12)


def test_only_differences_matter_until_scores_are_centered() -> None:
    rows, shifted = golden(), doubles(SCORES) + 3.0
    plain, moved = (loss_of(RM(), score_B, rows, rows.totals()).value for score_B in (doubles(SCORES), shifted))
    torch.testing.assert_close(plain, moved, rtol=1e-12, atol=0)
    centered = loss_of(RM(center_coef=0.1), shifted, rows, rows.totals()).value
    assert centered > plain + 0.1 * 36


def test_centering_below_zero_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"center_coef is -0.1"):
        RM(center_coef=-0.1)
