"""The clipped surrogate: golden values, golden gradients, and silence wherever there is no token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from loss_rows import Rows
from torch import Tensor

from engine.algorithms.clipping import Clip, Surrogate, clipped_surrogate

DAPO_CLIP = Clip(low=0.2, high=0.28)
METRICS = {"clip_low", "clip_high", "approx_kl", "approx_kl_k1", "ratio_mean", "entropy"}


def surrogate_of(rows: Rows, clip: Clip) -> Surrogate:
    return clipped_surrogate(rows.policy(), rows.experience(), rows.totals(horizon=4), clip)


def gradient_of(rows: Rows, clip: Clip) -> Tensor:
    rows = replace(rows, new_BT=rows.new_BT.clone().requires_grad_())
    (gradient_BT,) = torch.autograd.grad(surrogate_of(rows, clip).loss_BT.sum(), rows.new_BT)
    return gradient_BT


def assert_near(actual: Tensor, golden: list[list[float]], mask_BT: Tensor) -> None:
    golden_BT = torch.tensor(golden, dtype=actual.dtype)
    torch.testing.assert_close(actual[mask_BT], golden_BT[mask_BT], rtol=0, atol=2e-6)


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
    assert surrogate.metrics["clip_dual"].item() == pytest.approx(1 / 5)


def test_without_the_dual_clip_the_same_token_keeps_its_gradient(dual_rows: Rows) -> None:
    assert gradient_of(dual_rows, DAPO_CLIP)[1, 0].item() == pytest.approx(4.481689, abs=2e-6)


def test_metrics_are_token_means_over_the_step(clip_rows: Rows) -> None:
    metrics = surrogate_of(clip_rows, DAPO_CLIP).metrics
    ratios = [1.105171, 1.822119, 0.67032, 1.221403, 0.246597]
    log_ratios = [0.1, 0.6, -0.4, 0.2, -1.4]
    assert set(metrics) == METRICS
    assert metrics["clip_high"].item() == pytest.approx(1 / 5)
    assert metrics["clip_low"].item() == pytest.approx(1 / 5)
    assert metrics["ratio_mean"].item() == pytest.approx(sum(ratios) / 5, abs=2e-6)
    assert metrics["approx_kl_k1"].item() == pytest.approx(-sum(log_ratios) / 5, abs=1e-12)
    k3 = sum(ratio - 1 - log_ratio for ratio, log_ratio in zip(ratios, log_ratios, strict=True)) / 5
    assert metrics["approx_kl"].item() == pytest.approx(k3, abs=2e-6)
    assert metrics["entropy"].item() == pytest.approx((1 + 2 + 3 + 4 + 5) / 5)
    assert not any(metric.requires_grad for metric in metrics.values())


def test_only_a_token_that_stopped_teaching_counts_as_clipped(clip_rows: Rows) -> None:
    # With the signs turned every ratio outside the range is on the side that still teaches.
    turned = replace(clip_rows, advantages_BT=-clip_rows.advantages_BT)
    metrics = surrogate_of(turned, Clip(low=0.5, high=0.28)).metrics
    assert metrics["clip_high"].item() == 0.0
    assert metrics["clip_low"].item() == 0.0


def test_before_the_first_update_the_ratio_is_exactly_one(random_rows: Rows) -> None:
    rows = replace(random_rows, new_BT=random_rows.old_BT)
    surrogate = surrogate_of(rows, DAPO_CLIP)
    assert torch.equal(surrogate.loss_BT[rows.mask_BT], -rows.advantages_BT[rows.mask_BT])
    assert torch.equal(gradient_of(rows, DAPO_CLIP)[rows.mask_BT], -rows.advantages_BT[rows.mask_BT])
    assert surrogate.metrics["approx_kl"].item() == 0.0


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf")])
def test_junk_at_masked_positions_changes_nothing(random_rows: Rows, junk: float) -> None:
    clip = Clip(low=0.2, high=0.28, dual=3.0)
    clean, spoiled = surrogate_of(random_rows, clip), surrogate_of(random_rows.spoiled(junk), clip)
    assert torch.equal(clean.loss_BT, spoiled.loss_BT)
    assert {name: value.item() for name, value in clean.metrics.items()} == {
        name: value.item() for name, value in spoiled.metrics.items()
    }
    gradient_BT = gradient_of(random_rows.spoiled(junk), clip)
    assert torch.equal(gradient_BT, gradient_of(random_rows, clip))
    assert (gradient_BT[~random_rows.mask_BT] == 0).all()
    assert (gradient_BT[random_rows.mask_BT] != 0).any()


def test_a_policy_that_went_very_far_gives_finite_numbers(clip_rows: Rows) -> None:
    for far in (-500.0, 500.0):
        rows = replace(clip_rows, new_BT=(clip_rows.old_BT + far).float())
        surrogate = surrogate_of(rows, DAPO_CLIP)
        assert surrogate.loss_BT.isfinite().all()
        assert gradient_of(rows, DAPO_CLIP).isfinite().all()
        assert all(metric.isfinite() for metric in surrogate.metrics.values())
