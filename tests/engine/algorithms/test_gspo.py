"""GSPO: a response has one ratio, and is kept or clipped as a whole."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from every_algorithm import every_mode
from loss_rows import Rows, assert_near, doubles, figures, gradient, loss_gradient, loss_of, outcomes

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.grpo import GRPO
from engine.algorithms.gspo import GSPO, Form

every_form = pytest.mark.parametrize("form", Form)
GOLDEN_S = [1.105171, 0.548812]


@every_form
@pytest.mark.parametrize(("low", "high", "golden"), [(3e-4, 4e-4, -0.00035), (0.3, 0.3, -0.202585)])
def test_the_loss_is_golden(clip_rows: Rows, form: Form, low: float, high: float, golden: float) -> None:
    algorithm = GSPO(form=form, clip_low=low, clip_high=high)
    loss = loss_of(algorithm, clip_rows, clip_rows.totals())
    assert loss.value.item() == pytest.approx(golden, abs=2e-6)
    assert loss.metrics["ratio_mean"].item() == pytest.approx((3 * GOLDEN_S[0] + 2 * GOLDEN_S[1]) / 5, abs=2e-6)


@every_form
@pytest.mark.parametrize(
    ("low", "high", "golden"),
    [
        (3e-4, 4e-4, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        (0.3, 0.3, [[-1.105171, -1.105171, -1.105171], [0.0, 0.0, 0.0]]),
        # Nothing is clipped: -A s on every token of a response.
        (1.0, 9.0, [[-1.105171, -1.105171, -1.105171], [0.548812, 0.548812, 0.0]]),
    ],
)
def test_the_coefficients_are_golden(
    clip_rows: Rows, form: Form, low: float, high: float, golden: list[list[float]]
) -> None:
    """Of d loss / d logprob, before the division by sequences and by the response's length (pitfall 7)."""
    gradient_BT = loss_gradient(GSPO(form=form, clip_low=low, clip_high=high), clip_rows, clip_rows.totals())
    assert_near(gradient_BT * 2 * doubles([[3.0], [2.0]]), golden)


@every_mode
def test_where_tokens_share_their_advantage_both_forms_agree(random_rows: Rows, mode: Aggregation) -> None:
    """Pitfall 8: the token form holds the response's ratio fixed, and lets each token's own log-prob through."""
    totals = random_rows.totals()
    sequence, token = (GSPO(clip_low=0.3, clip_high=0.3, aggregation=mode, form=form) for form in Form)
    expected, actual = loss_of(sequence, random_rows, totals), loss_of(token, random_rows, totals)
    assert figures(actual) == pytest.approx(figures(expected), rel=1e-12, abs=1e-14)
    # Rollout correction may weigh tokens apart, which reaches single tokens in the token form alone.
    uncorrected = replace(random_rows, rollout_BT=random_rows.old_BT)
    gradient_BT = loss_gradient(token, uncorrected, totals)
    torch.testing.assert_close(gradient_BT, loss_gradient(sequence, uncorrected, totals), rtol=1e-12, atol=1e-14)
    assert (gradient_BT[random_rows.mask_BT] != 0).sum() >= 8


def test_where_tokens_differ_the_token_form_pulls_each_by_its_own_advantage(clip_rows: Rows) -> None:
    advantages_BT = doubles([[1.0, -2.0, 0.5], [-1.0, 3.0, 0.0]])
    rows = replace(clip_rows, advantages_BT=advantages_BT)
    algorithm = GSPO(form=Form.TOKEN, clip_low=1.0, clip_high=9.0)
    expected_BT = -advantages_BT * doubles(GOLDEN_S).unsqueeze(-1) / doubles([[6.0], [4.0]])
    assert_near(loss_gradient(algorithm, rows, rows.totals()), expected_BT.tolist())


@every_form
def test_a_response_is_clipped_as_a_whole(clip_rows: Rows, form: Form) -> None:
    loss = loss_of(GSPO(form=form), clip_rows, clip_rows.totals())
    assert loss.metrics["clip_high"].item() == pytest.approx(3 / 5)
    assert loss.metrics["clip_low"].item() == pytest.approx(2 / 5)


@every_form
def test_the_length_of_a_response_does_not_move_its_ratio(clip_rows: Rows, form: Form) -> None:
    """Pitfall 7: a ratio per response times a mask per token multiplies by the length."""
    rows = clip_rows.at([0, 0])
    rows = replace(rows, old_BT=torch.zeros_like(rows.old_BT), new_BT=torch.full_like(rows.old_BT, 0.1))
    rows = replace(rows, mask_BT=torch.tensor([[True, True, True], [True, False, False]]))
    rows = replace(rows, rollout_BT=rows.old_BT)
    assert loss_of(GSPO(form=form, clip_high=0.2), rows, rows.totals()).value.item() == pytest.approx(-math.exp(0.1))


@every_form
def test_one_token_that_went_very_far_is_held_by_the_mean_alone(clip_rows: Rows, form: Form) -> None:
    """Pitfall 7: no overflow, and the mean is what is held within its limit, not the token."""
    algorithm = GSPO(form=form, clip_low=1.0, clip_high=1e9)
    old_BT = clip_rows.old_BT[:1]
    for far, mean in ((27.0, 9.0), (300.0, 10.0)):
        rows = replace(clip_rows.at([0]), new_BT=old_BT + doubles([[far, 0.0, 0.0]]))
        loss = loss_of(algorithm, rows, rows.totals())
        assert loss.value.item() == pytest.approx(-math.exp(mean), rel=1e-9)
        floats = replace(rows, new_BT=rows.new_BT.float())
        assert gradient(lambda own: loss_of(algorithm, own, own.totals()).value, floats).isfinite().all()


def test_advantages_are_those_of_grpo() -> None:
    own = outcomes([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.3], [0, 0, 0, 0, 1, 1, 2])
    np.testing.assert_array_equal(GSPO().advantage(own), GRPO().advantage(own))


def test_the_defaults_are_those_of_the_paper() -> None:
    algorithm = GSPO()
    assert (algorithm.clip_low, algorithm.clip_high) == (3e-4, 4e-4)
    assert algorithm.aggregation is Aggregation.SEQ_MEAN_TOKEN_MEAN
    assert algorithm.form is Form.SEQUENCE and algorithm.kl_coef == 0.0
