"""The clipped surrogate: golden values, golden gradients, and silence wherever there is no token."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from loss_rows import Rows, assert_near, gradient
from torch import Tensor

from engine.algorithms.aggregation import token_mean
from engine.algorithms.clipping import Clip, TokenLoss, clipped_surrogate

DAPO_CLIP = Clip(low=0.2, high=0.28)
METRICS = {"clip_low", "clip_high", "approx_kl", "approx_kl_k1", "ratio_mean"}


def surrogate_of(rows: Rows, clip: Clip) -> TokenLoss:
    return clipped_surrogate(rows.policy(), rows.experience(), clip)


def gradient_of(rows: Rows, clip: Clip) -> Tensor:
    return gradient(lambda own: surrogate_of(own, clip).loss_BT.sum(), rows)


def means(rows: Rows, clip: Clip) -> dict[str, float]:
    """The metrics as a step reports them: means over its action tokens."""
    metrics_BT = surrogate_of(rows, clip).metrics_BT
    return {name: token_mean(value_BT, rows.batch(), rows.totals()).item() for name, value_BT in metrics_BT.items()}


def test_clipping_gives_the_golden_loss_and_gradient(clip_rows: Rows) -> None:
    loss_BT = surrogate_of(clip_rows, DAPO_CLIP).loss_BT
    assert_near(loss_BT, [[-1.105171, -1.28, -0.67032], [1.221403, 0.8, 7.389056]], clip_rows.mask_BT)
    golden_gradient = [[-1.105171, 0.0, -0.67032], [1.221403, 0.0, 7.389056]]
    assert_near(gradient_of(clip_rows, DAPO_CLIP), golden_gradient, clip_rows.mask_BT)


def test_the_dual_clip_gives_the_golden_loss_and_gradient(dual_rows: Rows) -> None:
    clip = Clip(low=0.2, high=0.28, dual=3.0)
    surrogate = surrogate_of(dual_rows, clip)
    assert_near(surrogate.loss_BT, [[-1.105171, -1.28, -0.67032], [3.0, 1.648721, 1.0]], dual_rows.mask_BT)
    golden_gradient = [[-1.105171, 0.0, -0.67032], [0.0, 1.648721, 1.0]]
    assert_near(gradient_of(dual_rows, clip), golden_gradient, dual_rows.mask_BT)
    assert means(dual_rows, clip)["clip_dual"] == pytest.approx(1 / 5)


def test_without_the_dual_clip_the_same_token_keeps_its_gradient(dual_rows: Rows) -> None:
    assert gradient_of(dual_rows, DAPO_CLIP)[1, 0].item() == pytest.approx(4.481689, abs=2e-6)


def test_metrics_are_token_means_over_the_step(clip_rows: Rows) -> None:
    metrics = means(clip_rows, DAPO_CLIP)
    ratios = [1.105171, 1.822119, 0.67032, 1.221403, 0.246597]
    log_ratios = [0.1, 0.6, -0.4, 0.2, -1.4]
    assert set(metrics) == METRICS
    assert metrics["clip_high"] == pytest.approx(1 / 5)
    assert metrics["clip_low"] == pytest.approx(1 / 5)
    assert metrics["ratio_mean"] == pytest.approx(sum(ratios) / 5, abs=2e-6)
    assert metrics["approx_kl_k1"] == pytest.approx(-sum(log_ratios) / 5, abs=1e-12)
    k3 = sum(ratio - 1 - log_ratio for ratio, log_ratio in zip(ratios, log_ratios, strict=True)) / 5
    assert metrics["approx_kl"] == pytest.approx(k3, abs=2e-6)


def test_only_a_token_that_stopped_teaching_counts_as_clipped(clip_rows: Rows) -> None:
    # With the signs turned every ratio outside the range is on the side that still teaches.
    turned = replace(clip_rows, advantages_BT=-clip_rows.advantages_BT)
    metrics = means(turned, Clip(low=0.5, high=0.28))
    assert metrics["clip_high"] == 0.0
    assert metrics["clip_low"] == 0.0


def test_before_the_first_update_the_ratio_is_exactly_one(random_rows: Rows) -> None:
    """Pitfall 30: and the gradient is there all the same."""
    rows = replace(random_rows, new_BT=random_rows.old_BT)
    surrogate = surrogate_of(rows, DAPO_CLIP)
    assert torch.equal(surrogate.loss_BT[rows.mask_BT], -rows.advantages_BT[rows.mask_BT])
    assert torch.equal(gradient_of(rows, DAPO_CLIP)[rows.mask_BT], -rows.advantages_BT[rows.mask_BT])
    assert means(rows, DAPO_CLIP)["approx_kl"] == 0.0


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf")])
def test_junk_at_masked_positions_changes_nothing(random_rows: Rows, junk: float) -> None:
    clip = Clip(low=0.2, high=0.28, dual=3.0)
    clean, spoiled = surrogate_of(random_rows, clip), surrogate_of(random_rows.spoiled(junk), clip)
    assert torch.equal(clean.loss_BT, spoiled.loss_BT)
    assert means(random_rows, clip) == means(random_rows.spoiled(junk), clip)
    gradient_BT = gradient_of(random_rows.spoiled(junk), clip)
    assert torch.equal(gradient_BT, gradient_of(random_rows, clip))
    assert (gradient_BT[~random_rows.mask_BT] == 0).all()
    assert (gradient_BT[random_rows.mask_BT] != 0).any()


def test_a_policy_that_went_very_far_gives_finite_numbers(clip_rows: Rows) -> None:
    for far in (-500.0, 500.0):
        rows = replace(clip_rows, new_BT=(clip_rows.old_BT + far).float())
        assert surrogate_of(rows, DAPO_CLIP).loss_BT.isfinite().all()
        assert gradient_of(rows, DAPO_CLIP).isfinite().all()
        assert all(math.isfinite(metric) for metric in means(rows, DAPO_CLIP).values())


def test_under_the_dual_clip_a_token_past_its_ceiling_sends_exactly_no_gradient(dual_rows: Rows) -> None:
    clip = Clip(low=0.2, high=0.28, dual=3.0)
    assert gradient_of(dual_rows, clip)[1, 0].item() == 0.0
    # A token to be made more likely is none of its business, however far it went.
    turned, wide = replace(dual_rows, advantages_BT=-dual_rows.advantages_BT), Clip(low=0.2, high=9.0)
    assert gradient_of(turned, replace(wide, dual=3.0))[1, 0].item() == pytest.approx(-4.481689, abs=2e-6)


def test_a_capped_ratio_bounds_the_blame_and_not_the_praise(dual_rows: Rows) -> None:
    """INTELLECT-2: min(ratio, cap) stands in for the ratio; above it a blamed token teaches nothing."""
    capped = replace(DAPO_CLIP, ratio_cap=4.0)
    golden = [[-1.105171, -1.28, -0.67032], [4.0, 1.648721, 1.0]]
    assert_near(surrogate_of(dual_rows, capped).loss_BT, golden, dual_rows.mask_BT)
    assert gradient_of(dual_rows, capped)[1, 0].item() == 0.0
    assert gradient_of(dual_rows, replace(DAPO_CLIP, ratio_cap=5.0))[1, 0].item() == pytest.approx(4.481689, abs=2e-6)
