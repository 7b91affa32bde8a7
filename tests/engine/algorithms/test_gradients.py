"""Every algorithm's gradient is that of finite differences, in every mode and with every term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from every_algorithm import algorithm_of, every_algorithm, every_mode
from loss_rows import Rows, gradient, loss_gradient, loss_of
from torch import Tensor

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.cispo import CISPO
from engine.algorithms.gspo import GSPO, Form
from engine.algorithms.policy_gradient import PolicyGradient

STEP = 1e-6


def finite_differences(value_of: Callable[[Tensor], Tensor], point_BT: Tensor) -> Tensor:
    """Central differences, one entry at a time."""
    found_BT = torch.zeros_like(point_BT)
    for entry in range(point_BT.numel()):
        aside_BT = torch.zeros_like(point_BT)
        aside_BT.view(-1)[entry] = STEP
        difference = value_of(point_BT + aside_BT) - value_of(point_BT - aside_BT)
        found_BT.view(-1)[entry] = difference.item() / (2 * STEP)
    return found_BT


def value_with(algorithm: PolicyGradient, rows: Rows, new_BT: Tensor) -> Tensor:
    """The loss of a policy nearby. What an algorithm holds fixed while it differentiates is held fixed here too."""
    moved = replace(rows, new_BT=new_BT)
    match algorithm:
        case CISPO():
            # The past moves along, so that every weight stays as it was.
            by_BT = new_BT - rows.new_BT
            moved = replace(moved, old_BT=rows.old_BT + by_BT, rollout_BT=rows.rollout_BT + by_BT)
        case GSPO(form=Form.TOKEN):
            # Its value is that of the sequence form, and so is its gradient where weights do not tell tokens apart.
            algorithm = replace(algorithm, form=Form.SEQUENCE)
    return loss_of(algorithm, moved, rows.totals()).value


@every_mode
@every_algorithm
def test_the_gradient_is_that_of_finite_differences(random_rows: Rows, name: str, mode: Aggregation) -> None:
    algorithm, rows = algorithm_of(name, mode), random_rows
    if isinstance(algorithm, GSPO):
        rows = replace(rows, rollout_BT=rows.old_BT)
    expected_BT = finite_differences(lambda new_BT: value_with(algorithm, rows, new_BT), rows.new_BT)
    actual_BT = loss_gradient(algorithm, rows, rows.totals())
    torch.testing.assert_close(actual_BT, expected_BT, rtol=1e-6, atol=1e-8)
    assert (actual_BT[rows.mask_BT] != 0).sum() >= 8


@every_mode
@every_algorithm
def test_the_gradient_is_a_sum_over_tokens_of_one_step(random_rows: Rows, name: str, mode: Aggregation) -> None:
    """Pitfall 2: with everything doubled, two copies of a batch, each token pulls half as much."""
    algorithm = algorithm_of(name, mode)
    twice = random_rows.at([*range(6), *range(6)])
    more = replace(twice, prompt_B=torch.cat([random_rows.prompt_B, random_rows.prompt_B + 10]))
    once_BT = loss_gradient(algorithm, random_rows, random_rows.totals())
    twice_BT = gradient(lambda own: loss_of(algorithm, own, own.totals()).value, more)
    torch.testing.assert_close(2 * twice_BT, torch.cat([once_BT, once_BT]), rtol=1e-12, atol=1e-15)
