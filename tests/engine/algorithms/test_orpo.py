"""ORPO: golden numbers, and odds of what is nearly certain."""

from __future__ import annotations

import math

import pytest
import torch
from lesson_rows import PAIR, each_alone, figures, golden_pairs, gradient, loss_of, rows_of
from loss_rows import assert_near, doubles

from engine.algorithms.orpo import ORPO, log1mexp


def test_golden_losses() -> None:
    assert_near(each_alone(ORPO(odds_coef=0.1), golden_pairs()), [2.069315, 2.546116])
    told = figures(loss_of(ORPO(), golden_pairs(), golden_pairs().totals()))
    assert told["log_odds_ratio"] == pytest.approx((0.0 + 0.534581) / 2, abs=2e-6)
    assert told["nll"] == pytest.approx((2.0 + 2.5) / 2)
    assert told["accuracy"] == 0.5 and told["margin"] == pytest.approx(0.1 * 0.5 / 2)


def test_the_logarithm_of_the_rest_is_exact_near_and_far_from_certain() -> None:
    """Pitfall 26."""
    exact = {-1e-9: math.log(1e-9), -1e-4: math.log(-math.expm1(-1e-4)), -40.0: -math.exp(-40.0)}
    for dtype in (torch.float32, torch.float64):
        found = log1mexp(torch.tensor(list(exact), dtype=dtype)).tolist()
        assert found == pytest.approx(list(exact.values()), rel=1e-6)
    middle = doubles([-math.log(2)])
    assert log1mexp(middle).item() == pytest.approx(-math.log(2), rel=1e-12)


@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1e-7])
def test_a_certain_answer_and_an_empty_one_stay_finite(chosen: float) -> None:
    rows = rows_of(PAIR, (2, 2), (chosen, -1e4), (0.0, 0.0))
    for own in (rows, rows.at([1, 0])):
        assert math.isfinite(loss_of(ORPO(odds_coef=1.0), own, own.totals()).value.item())
        pull_BT = gradient(lambda own: loss_of(ORPO(odds_coef=1.0), own, own.totals()).value, own)
        assert pull_BT.isfinite().all()


def test_without_the_odds_it_is_imitation_of_the_chosen_answers() -> None:
    pull_BT = gradient(lambda own: loss_of(ORPO(odds_coef=0.0), own, own.totals()).value, golden_pairs())
    assert pull_BT[0, :5].tolist() == pytest.approx([-1 / 2 / 5] * 5)
    assert pull_BT[2, :8].tolist() == pytest.approx([-1 / 2 / 8] * 8)
    assert (pull_BT[[1, 3]] == 0).all()
