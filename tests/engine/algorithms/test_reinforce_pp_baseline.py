"""REINFORCE++-baseline: the siblings' mean, then the spread of all tokens."""

from __future__ import annotations

import pytest
from loss_rows import Rows, assert_near, doubles, loss_of, step_advantages

from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import KlIn
from engine.algorithms.reinforce_pp_baseline import ReinforcePPBaseline


@pytest.mark.parametrize(
    ("ddof", "golden"),
    [
        (1, [1.729011, -1.371284, 0.178863, -1.371284, -0.208674, -0.208674, -0.208674]),
        (0, [1.763252, -1.398441, 0.182405, -1.398441, -0.212806, -0.212806, -0.212806]),
    ],
)
def test_advantages_are_golden(judged_rows: Rows, ddof: int, golden: list[float]) -> None:
    """Also of a response alone and of equal siblings: 0 above them, then below the mean of the batch."""
    advantages_BT = step_advantages(ReinforcePPBaseline(whiten_ddof=ddof), judged_rows)
    assert_near(advantages_BT, doubles(golden).unsqueeze(-1).expand(7, 5).tolist(), judged_rows.mask_BT)
    assert (advantages_BT[~judged_rows.mask_BT] == 0).all()


def test_the_loss_is_the_clipped_surrogate(clip_rows: Rows) -> None:
    loss = loss_of(ReinforcePPBaseline(clip_high=0.28, kl_coef=0.0), clip_rows, clip_rows.totals())
    assert loss.value.item() == pytest.approx(-0.206818, abs=2e-6)


def test_the_defaults_are_those_of_the_paper() -> None:
    algorithm = ReinforcePPBaseline()
    assert (algorithm.kl_coef, algorithm.kl_in, algorithm.kl_estimator) == (1e-3, KlIn.LOSS, KlEstimator.K2)
    assert algorithm.whiten and algorithm.whiten_ddof == 1 and algorithm.min_group_size == 2
