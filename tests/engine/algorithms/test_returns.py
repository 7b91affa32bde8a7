"""Credit along a response: golden numbers, and loops over each response's own actions."""

from __future__ import annotations

import math

import pytest
import torch
from loss_rows import Rows, assert_near, doubles
from torch import Tensor

from engine.algorithms.returns import at_last_action, generalised_advantages, returns_to_go

discounts = pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])


def actions_of(mask_BT: Tensor) -> list[tuple[int, list[int]]]:
    """Each row's number, and where its actions stand."""
    return [(row, [t for t, acts in enumerate(own) if acts]) for row, own in enumerate(mask_BT.tolist())]


def test_a_reward_stands_on_the_last_action_and_nowhere_else() -> None:
    """Pitfalls 10 and 19: neither on padding, nor on a tool's last word, nor in a row without an action."""
    mask_BT = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    placed_BT = at_last_action(doubles([1.0, 2.0, 3.0, math.nan]), mask_BT)
    assert placed_BT.tolist() == [[0, 0, 1, 0], [0, 0, 0, 2], [0, 3, 0, 0], [0, 0, 0, 0]]


def test_returns_pass_over_a_tool_span_without_discount() -> None:
    """Pitfall 9: golden; a masked position neither resets nor discounts."""
    mask_BT = torch.tensor([[1, 1, 0, 0, 1, 1]], dtype=torch.bool)
    reward_BT = doubles([[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    assert_near(returns_to_go(reward_BT, mask_BT, gamma=0.9), [[0.729, 0.81, 0.0, 0.0, 0.9, 1.0]])


@discounts
def test_returns_are_sums_of_what_is_still_to_come(random_rows: Rows, gamma: float) -> None:
    reward_BT, mask_BT = random_rows.returns_BT, random_rows.mask_BT
    expected_BT = torch.zeros_like(reward_BT)
    for row, actions in actions_of(mask_BT):
        for k, t in enumerate(actions):
            to_come = (gamma**j * reward_BT[row, later] for j, later in enumerate(actions[k:]))
            expected_BT[row, t] = sum(to_come)
    torch.testing.assert_close(returns_to_go(reward_BT, mask_BT, gamma=gamma), expected_BT, rtol=1e-13, atol=1e-14)


@discounts
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_generalised_advantages_are_discounted_sums_of_errors(random_rows: Rows, gamma: float, lam: float) -> None:
    reward_BT, values_BT, mask_BT = random_rows.returns_BT, random_rows.old_values_BT, random_rows.mask_BT
    expected_BT = torch.zeros_like(reward_BT)
    for row, actions in actions_of(mask_BT):
        values = [values_BT[row, t].item() for t in actions] + [0.0]
        errors = [reward_BT[row, t] + gamma * values[k + 1] - values[k] for k, t in enumerate(actions)]
        for k, t in enumerate(actions):
            expected_BT[row, t] = sum((gamma * lam) ** j * error for j, error in enumerate(errors[k:]))
    actual_BT = generalised_advantages(reward_BT, values_BT, mask_BT, gamma=gamma, lam=lam)
    torch.testing.assert_close(actual_BT, expected_BT, rtol=1e-13, atol=1e-14)


def test_trusting_the_outcome_alone_the_advantage_is_the_return_less_the_value(random_rows: Rows) -> None:
    reward_BT, values_BT, mask_BT = random_rows.returns_BT, random_rows.old_values_BT, random_rows.mask_BT
    advantage_BT = generalised_advantages(reward_BT, values_BT, mask_BT, gamma=0.9, lam=1.0)
    expected_BT = returns_to_go(reward_BT, mask_BT, gamma=0.9) - values_BT
    torch.testing.assert_close(advantage_BT[mask_BT], expected_BT[mask_BT], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_what_stands_at_masked_positions_is_not_looked_at(random_rows: Rows, junk: float) -> None:
    spoiled, mask_BT = random_rows.spoiled(junk), random_rows.mask_BT
    for own in (random_rows, spoiled):
        assert returns_to_go(own.returns_BT, mask_BT, gamma=0.9).isfinite().all()
    clean_BT = generalised_advantages(random_rows.returns_BT, random_rows.old_values_BT, mask_BT, gamma=0.9, lam=0.8)
    spoiled_BT = generalised_advantages(spoiled.returns_BT, spoiled.old_values_BT, mask_BT, gamma=0.9, lam=0.8)
    assert torch.equal(clean_BT, spoiled_BT)
