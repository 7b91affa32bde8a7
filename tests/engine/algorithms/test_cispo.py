"""CISPO: every token teaches, with a bounded weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from every_algorithm import every_mode
from loss_rows import Rows, assert_near, doubles, gradient, loss_gradient, loss_of

from engine.algorithms.aggregation import Aggregation, aggregate
from engine.algorithms.cispo import CISPO
from engine.algorithms.correction import Correction, ImportanceWeight
from engine.algorithms.settings import InvalidSetting


def test_loss_and_gradient_are_golden(clip_rows: Rows) -> None:
    algorithm, past = CISPO(), clip_rows.experience()
    loss_BT = algorithm.token_loss(clip_rows.policy(), past).loss_BT
    assert_near(loss_BT, [[0.994654, 1.68, 0.603288], [-0.12, -0.641152, -2.4]], clip_rows.mask_BT)
    assert loss_of(algorithm, clip_rows, clip_rows.totals()).value.item() == pytest.approx(0.503358, abs=2e-6)
    # -w A, also where the ratio left its bounds: no token is dropped.
    golden = [[-1.105171, -1.2, -0.67032], [1.2, 0.246597, 1.2]]
    gradient_BT = gradient(lambda own: algorithm.token_loss(own.policy(), past).loss_BT.sum(), clip_rows)
    assert_near(gradient_BT, golden, clip_rows.mask_BT)


@every_mode
def test_the_gradient_is_minus_the_weight_times_the_advantage(random_rows: Rows, mode: Aggregation) -> None:
    rows = replace(random_rows, rollout_BT=random_rows.old_BT)
    gradient_BT = loss_gradient(CISPO(aggregation=mode, clip_high=0.1), rows, rows.totals())
    weight_BT = (rows.new_BT - rows.old_BT).exp().clamp(max=1.1)
    share_BT = gradient(lambda own: aggregate(own.new_BT, own.batch(), own.totals(), mode), rows)
    torch.testing.assert_close(gradient_BT, -weight_BT * rows.advantages_BT * share_BT, rtol=1e-12, atol=0)
    assert (weight_BT[rows.mask_BT] == 1.1).any()


def test_a_floor_and_an_absolute_cap_bound_the_weight(clip_rows: Rows) -> None:
    """Ratios 1.105, 1.822, 0.670 and 1.221, 0.247. The cap is the ceiling itself, not a distance from 1."""
    rows = replace(clip_rows, advantages_BT=torch.ones_like(clip_rows.advantages_BT))
    correction = Correction(weight=ImportanceWeight.NONE)

    def weights(algorithm: CISPO) -> list[list[float]]:
        totals = replace(rows.totals(), tokens=1)
        return (-loss_gradient(replace(algorithm, correction=correction), rows, totals)).tolist()

    floored = [[1.105171, 1.2, 0.8], [1.2, 0.8, 0.0]]
    assert_near(doubles(weights(CISPO(clip_low=0.2))), floored)
    capped = [[1.105171, 1.5, 0.67032], [1.221403, 0.246597, 0.0]]
    assert_near(doubles(weights(CISPO(ratio_cap=1.5))), capped)


def test_metrics_count_the_bounded_weights(clip_rows: Rows) -> None:
    metrics = loss_of(CISPO(clip_low=0.5), clip_rows, clip_rows.totals()).metrics
    assert metrics["clip_high"].item() == pytest.approx(2 / 5)
    assert metrics["clip_low"].item() == pytest.approx(1 / 5)
    assert metrics["ratio_mean"].item() == pytest.approx(
        (1.105171 + 1.822119 + 0.67032 + 1.221403 + 0.246597) / 5, abs=2e-6
    )


def test_a_token_that_went_very_far_gives_finite_numbers(clip_rows: Rows) -> None:
    for far in (-500.0, 500.0):
        rows = replace(clip_rows, new_BT=(clip_rows.old_BT + far).float())
        assert loss_of(CISPO(), rows, rows.totals()).value.isfinite()
        assert loss_gradient(CISPO(), rows, rows.totals()).isfinite().all()


def test_a_dual_clip_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"clip_dual is 3\.0"):
        CISPO(clip_dual=3.0)


def test_the_defaults_have_no_floor() -> None:
    algorithm = CISPO()
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.ratio_cap) == (1.0, 0.2, 0.0)
    assert algorithm.aggregation is Aggregation.TOKEN_MEAN and algorithm.kl_coef == 0.0
