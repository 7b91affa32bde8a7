"""Dr. GRPO: no division by the spread of a group, none by a response's own length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_rows import Rows, loss_gradient, loss_of, outcomes

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.dr_grpo import DrGRPO
from engine.algorithms.groups import Scale


def test_advantages_are_golden() -> None:
    advantage_B = DrGRPO().advantage(outcomes([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.3], [0, 0, 0, 0, 1, 1, 2]))
    np.testing.assert_allclose(advantage_B, [0.625, -0.375, 0.125, -0.375, 0.0, 0.0, 0.0], rtol=0, atol=1e-12)


def test_the_loss_is_golden_for_a_length_limit_of_four(clip_rows: Rows) -> None:
    loss = loss_of(replace(DrGRPO(), clip_high=0.28), clip_rows, clip_rows.totals(horizon=4))
    assert loss.value.item() == pytest.approx(-0.129261, abs=2e-6)


def test_every_token_pulls_alike_however_long_its_response_and_however_wide_the_batch(random_rows: Rows) -> None:
    """Pitfall 4: the divisor is sequences times the length limit, neither the padded width nor the limit alone."""
    rows = replace(random_rows, new_BT=random_rows.old_BT, rollout_BT=random_rows.old_BT)
    rows = replace(rows, advantages_BT=torch.ones_like(rows.old_BT))
    for own in (rows, rows.padded(7, 0.0)):
        gradient_BT = loss_gradient(DrGRPO(), own, rows.totals(horizon=10))
        torch.testing.assert_close(gradient_BT[own.mask_BT], torch.full((21,), -1 / (6 * 10)).double())


def test_the_defaults_are_those_of_the_paper() -> None:
    algorithm = DrGRPO()
    assert algorithm.aggregation is Aggregation.SEQ_MEAN_TOKEN_SUM_NORM
    assert algorithm.scale is Scale.NONE
    assert algorithm.kl_coef == 0.0 and not algorithm.needs.reference
