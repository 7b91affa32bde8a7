"""RLOO: each response against the mean of the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_rows import Rows, figures, judged, loss_gradient, loss_of, outcomes

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.groups import Singleton
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import KlIn
from engine.algorithms.rloo import RLOO, RatioOf

SCORES, GROUPS = [1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.3], [0, 0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(("singleton", "alone"), [(Singleton.ZERO, 0.0), (Singleton.RAW, 0.3)])
def test_advantages_are_golden(singleton: Singleton, alone: float) -> None:
    advantage_B = RLOO(singleton=singleton).advantage(outcomes(SCORES, GROUPS))
    np.testing.assert_allclose(advantage_B, [0.833333, -0.5, 0.166667, -0.5, 0.0, 0.0, alone], rtol=0, atol=2e-6)


def test_a_charged_divergence_gives_the_golden_advantages(judged_rows: Rows) -> None:
    advantage_B, _ = judged(RLOO(kl_coef=0.1), judged_rows)
    golden = [0.84, -0.506667, 0.173333, -0.506667, -0.01, 0.01, 0.0]
    np.testing.assert_allclose(advantage_B, golden, rtol=0, atol=2e-6)


def test_the_baseline_is_the_mean_of_the_others_one_by_one() -> None:
    random = np.random.default_rng(3)
    score_B, group_B = random.normal(size=23), random.integers(0, 6, size=23)
    expected_B = np.zeros(23)
    for row in range(23):
        others = [score_B[other] for other in range(23) if other != row and group_B[other] == group_B[row]]
        expected_B[row] = score_B[row] - sum(others) / len(others) if others else 0.0
    np.testing.assert_allclose(RLOO().advantage(outcomes(score_B, group_B)), expected_B, rtol=1e-12, atol=1e-14)


def test_by_default_the_loss_is_the_clipped_surrogate_of_tokens(clip_rows: Rows) -> None:
    loss = loss_of(RLOO(clip_high=0.28), clip_rows, clip_rows.totals())
    assert loss.value.item() == pytest.approx(-0.206818, abs=2e-6)


SEQUENCE = RLOO(
    ratio=RatioOf.SEQUENCE, aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN, clip_low=0.5, clip_high=0.4, kl_coef=0.0
)


def test_the_ratio_of_a_response_is_the_product_of_its_tokens(clip_rows: Rows) -> None:
    """Summed log-ratios of 0.3 and -1.2: the first is inside, the second below the floor, with A=-1."""
    loss = loss_of(SEQUENCE, clip_rows, clip_rows.totals())
    assert loss.value.item() == pytest.approx((-np.exp(0.3) + 0.5) / 2)
    assert loss.metrics["ratio_mean"].item() == pytest.approx((3 * np.exp(0.3) + 2 * np.exp(-1.2)) / 5)
    assert loss.metrics["clip_low"].item() == pytest.approx(2 / 5)


def test_every_token_of_a_response_pulls_alike_or_not_at_all(clip_rows: Rows) -> None:
    gradient_BT = loss_gradient(SEQUENCE, clip_rows, clip_rows.totals())
    torch.testing.assert_close(gradient_BT[0], torch.full((3,), -np.exp(0.3) / 2).double())
    assert gradient_BT[1].tolist() == [0.0, 0.0, 0.0]


def test_a_response_that_went_very_far_gives_finite_numbers(clip_rows: Rows) -> None:
    for far in (-300.0, 300.0):
        rows = replace(clip_rows, new_BT=(clip_rows.old_BT + far).float())
        assert all(np.isfinite(value) for value in figures(loss_of(SEQUENCE, rows, rows.totals())).values())
        assert loss_gradient(SEQUENCE, rows, rows.totals()).isfinite().all()


def test_the_defaults_are_those_of_the_paper() -> None:
    algorithm = RLOO()
    assert (algorithm.kl_coef, algorithm.kl_in, algorithm.kl_estimator) == (0.03, KlIn.REWARD, KlEstimator.K1)
    assert algorithm.min_group_size == 2 and not algorithm.whiten and not algorithm.credits_tokens
    assert algorithm.needs.old_logprobs and algorithm.needs.reference
