"""A step's loss does not depend on how its rows were split, ordered or padded."""

from __future__ import annotations

import pytest
import torch

from engine.algorithms.aggregation import Aggregation, aggregate, token_mean
from workers.records import Totals

LOSS_BT = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 0.0]], dtype=torch.float64)
MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
TOTALS = Totals(tokens=8, sequences=3, prompts=1, horizon=4)
GOLDEN = {
    Aggregation.TOKEN_MEAN: 1.875,
    Aggregation.SEQ_MEAN_TOKEN_MEAN: 2.0,
    Aggregation.SEQ_MEAN_TOKEN_SUM: 5.0,
    Aggregation.SEQ_MEAN_TOKEN_SUM_NORM: 1.25,
}
every_mode = pytest.mark.parametrize("mode", Aggregation)


@every_mode
def test_the_whole_batch_gives_the_golden_number(mode: Aggregation) -> None:
    assert aggregate(LOSS_BT, MASK_BT, TOTALS, mode).item() == pytest.approx(GOLDEN[mode], abs=1e-12)


@every_mode
@pytest.mark.parametrize("cuts", [[2, 1], [1, 1, 1], [3], [1, 2], [0, 3], [2, 0, 1]])
def test_contributions_of_any_split_add_up_to_the_golden_number(mode: Aggregation, cuts: list[int]) -> None:
    parts = zip(LOSS_BT.split(cuts), MASK_BT.split(cuts), strict=True)
    total = sum(aggregate(loss_BT, mask_BT, TOTALS, mode).item() for loss_BT, mask_BT in parts)
    assert total == pytest.approx(GOLDEN[mode], abs=1e-12)


@every_mode
def test_more_padding_changes_nothing(mode: Aggregation) -> None:
    loss_BT = torch.nn.functional.pad(LOSS_BT, (0, 7), value=float("nan"))
    mask_BT = torch.nn.functional.pad(MASK_BT, (0, 7), value=False)
    assert aggregate(loss_BT, mask_BT, TOTALS, mode).item() == pytest.approx(GOLDEN[mode], abs=1e-12)


@every_mode
def test_a_row_without_action_tokens_changes_nothing(mode: Aggregation) -> None:
    loss_BT = torch.cat([LOSS_BT, torch.full((1, 4), 9.0, dtype=torch.float64)])
    mask_BT = torch.cat([MASK_BT, torch.zeros(1, 4, dtype=torch.bool)])
    assert aggregate(loss_BT, mask_BT, TOTALS, mode).item() == pytest.approx(GOLDEN[mode], abs=1e-12)


@every_mode
def test_a_step_without_action_tokens_has_loss_zero_and_zero_gradient(mode: Aggregation) -> None:
    loss_BT = torch.full((2, 3), float("inf"), requires_grad=True)
    nothing = Totals(tokens=0, sequences=0, prompts=0, horizon=4)
    value = aggregate(loss_BT, torch.zeros(2, 3, dtype=torch.bool), nothing, mode)
    (gradient_BT,) = torch.autograd.grad(value, loss_BT)
    assert value.item() == 0.0
    assert gradient_BT.tolist() == [[0.0] * 3] * 2


@every_mode
def test_the_arithmetic_stays_in_the_precision_of_the_loss(mode: Aggregation) -> None:
    assert aggregate(LOSS_BT.float(), MASK_BT, TOTALS, mode).dtype == torch.float32


def test_a_metric_carries_no_gradient() -> None:
    loss_BT = LOSS_BT.clone().requires_grad_()
    metric = token_mean(loss_BT, MASK_BT, TOTALS)
    assert metric.item() == pytest.approx(1.875)
    assert not metric.requires_grad
