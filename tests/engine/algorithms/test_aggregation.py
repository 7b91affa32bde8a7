"""A step's loss does not depend on how its rows were split, ordered or padded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from every_algorithm import every_mode
from loss_rows import Rows, doubles, rows_of

from engine.algorithms.aggregation import Aggregation, aggregate, token_mean
from workers.records import Totals

LOSS_BT = doubles([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 0.0]])
MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
ROWS = rows_of(MASK_BT, new_BT=LOSS_BT, prompt_B=torch.tensor([0, 1, 0]))
"""The loss stands in for the log-probs. The first and the last row answer one prompt, the second another."""
TOTALS = Totals(tokens=8, sequences=3, prompts=2, horizon=4)
GOLDEN = {
    Aggregation.TOKEN_MEAN: 1.875,
    Aggregation.SEQ_MEAN_TOKEN_MEAN: 2.0,
    Aggregation.SEQ_MEAN_TOKEN_SUM: 5.0,
    Aggregation.SEQ_MEAN_TOKEN_SUM_NORM: 1.25,
    Aggregation.PROMPT_MEAN: (13 / 7 + 2 / 1) / 2,
}


def share(rows: Rows, mode: Aggregation) -> float:
    return aggregate(rows.new_BT, rows.batch(), TOTALS, mode).item()


@every_mode
def test_the_whole_batch_gives_the_golden_number(mode: Aggregation) -> None:
    assert ROWS.totals(horizon=4) == TOTALS
    assert share(ROWS, mode) == pytest.approx(GOLDEN[mode], abs=1e-12)


@every_mode
@pytest.mark.parametrize("parts", [[[0, 1], [2]], [[0], [1], [2]], [[2, 0, 1]], [[], [1, 2], [0]]])
def test_contributions_of_any_split_add_up_to_the_golden_number(mode: Aggregation, parts: list[list[int]]) -> None:
    """Pitfall 1: neither the mean of micro-batch means (2.1) nor one weighted by rows (1.8)."""
    assert sum(share(ROWS.at(rows), mode) for rows in parts) == pytest.approx(GOLDEN[mode], abs=1e-12)


@every_mode
def test_more_padding_changes_nothing(mode: Aggregation) -> None:
    """Pitfall 4: the horizon is the constant length limit, not the width of the batch."""
    assert share(ROWS.padded(7, float("nan")), mode) == pytest.approx(GOLDEN[mode], abs=1e-12)


@every_mode
def test_a_row_without_action_tokens_changes_nothing(mode: Aggregation) -> None:
    """Pitfall 5."""
    more = ROWS.with_an_empty_row()
    assert more.totals(horizon=4) == TOTALS
    assert share(more, mode) == pytest.approx(GOLDEN[mode], abs=1e-12)


@every_mode
def test_a_step_without_action_tokens_has_loss_zero_and_zero_gradient(mode: Aggregation) -> None:
    loss_BT = torch.full((3, 4), float("inf"), requires_grad=True)
    nothing = Totals(tokens=0, sequences=0, prompts=0, horizon=4)
    batch = rows_of(torch.zeros(3, 4, dtype=torch.bool)).batch()
    value = aggregate(loss_BT, batch, nothing, mode)
    (gradient_BT,) = torch.autograd.grad(value, loss_BT)
    assert value.item() == 0.0
    assert gradient_BT.tolist() == [[0.0] * 4] * 3


@every_mode
def test_the_arithmetic_stays_in_the_precision_of_the_loss(mode: Aggregation) -> None:
    assert aggregate(LOSS_BT.float(), ROWS.batch(), TOTALS, mode).dtype == torch.float32


def test_who_weighs_the_same() -> None:
    """The pull of each token, by hand: of the long row, the lonely token, and the row of three."""
    pulls = {
        Aggregation.TOKEN_MEAN: (1 / 8, 1 / 8, 1 / 8),
        Aggregation.SEQ_MEAN_TOKEN_SUM: (1 / 3, 1 / 3, 1 / 3),
        Aggregation.SEQ_MEAN_TOKEN_MEAN: (1 / 12, 1 / 3, 1 / 9),
        Aggregation.SEQ_MEAN_TOKEN_SUM_NORM: (1 / 12, 1 / 12, 1 / 12),
        Aggregation.PROMPT_MEAN: (1 / 14, 1 / 2, 1 / 14),
    }
    assert set(pulls) == set(Aggregation)
    for mode, (long, lonely, three) in pulls.items():
        loss_BT = LOSS_BT.clone().requires_grad_()
        (gradient_BT,) = torch.autograd.grad(aggregate(loss_BT, ROWS.batch(), TOTALS, mode), loss_BT)
        expected = doubles([[long] * 4, [lonely, 0, 0, 0], [three] * 3 + [0]])
        torch.testing.assert_close(gradient_BT, expected, rtol=1e-14, atol=0)


def test_a_prompt_whose_answers_are_on_several_ranks_still_weighs_as_one() -> None:
    [first] = [share(ROWS.at([0]), Aggregation.PROMPT_MEAN)]
    assert first == pytest.approx(4 / 7 / 2)
    alone = replace(ROWS.at([0]), prompt_tokens_B=torch.tensor([4]))
    assert share(alone, Aggregation.PROMPT_MEAN) == pytest.approx(4 / 4 / 2)


def test_a_metric_carries_no_gradient() -> None:
    metric = token_mean(LOSS_BT.clone().requires_grad_(), ROWS.batch(), TOTALS)
    assert metric.item() == pytest.approx(1.875)
    assert not metric.requires_grad
