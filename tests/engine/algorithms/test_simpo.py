"""SimPO: golden numbers, and what gamma means."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from lesson_rows import each_alone, figures, golden_pairs, loss_of
from loss_rows import assert_near

from engine.algorithms.settings import InvalidSetting
from engine.algorithms.simpo import SimPO


def test_golden_losses() -> None:
    assert_near(each_alone(SimPO(beta=2.0, gamma_beta_ratio=0.5), golden_pairs()), [1.313262, 0.693147])
    assert_near(each_alone(SimPO(beta=2.5, gamma_beta_ratio=1.375 / 2.5), golden_pairs()), [1.600413, 0.757599])


def test_the_margin_is_gamma_over_beta_and_the_defaults_are_the_authors() -> None:
    """Pitfall 27: a gamma of 1.375 written where gamma / beta is meant would be a margin 2.5 times as large."""
    assert SimPO().gamma == pytest.approx(1.375)
    assert SimPO(beta=2.0, gamma_beta_ratio=0.5).gamma == 1.0


def test_nothing_is_added_that_imitates() -> None:
    """Pitfall 27: at equal rewards the loss is that of the margin alone."""
    rows = golden_pairs().lessons_at([0])
    loss = loss_of(SimPO(gamma_beta_ratio=0.0), rows, rows.totals())
    assert loss.value.item() == pytest.approx(math.log(2)) and "nll" not in loss.metrics


def test_no_reference_is_read_or_asked_for() -> None:
    assert not SimPO().needs.reference
    rows = golden_pairs()
    other = replace(rows, reference_BT=rows.reference_BT * math.nan)
    assert figures(loss_of(SimPO(), other, rows.totals())) == figures(loss_of(SimPO(), rows, rows.totals()))


def test_smoothing_is_a_mixture_of_both_labels() -> None:
    smoothed = each_alone(SimPO(beta=2.0, gamma_beta_ratio=0.5, label_smoothing=0.1), golden_pairs())
    margins = (2 * 0.0 - 1, 2 * 0.5 - 1)
    by_hand = [0.9 * math.log1p(math.exp(-own)) + 0.1 * math.log1p(math.exp(own)) for own in margins]
    assert_near(smoothed, by_hand)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"label_smoothing is 0.7"):
        SimPO(label_smoothing=0.7)
    with pytest.raises(InvalidSetting, match=r"gamma_beta_ratio is -0.5"):
        SimPO(gamma_beta_ratio=-0.5)
