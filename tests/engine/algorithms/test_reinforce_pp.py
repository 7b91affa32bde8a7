"""REINFORCE++: the reward still to come, normalised over the batch."""

from __future__ import annotations

import numpy as np
import pytest
from loss_rows import Rows, assert_near, credited, doubles, judged, step_advantages

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import KlIn
from engine.algorithms.reinforce_pp import ReinforcePP
from engine.algorithms.settings import InvalidSetting


@pytest.mark.parametrize(
    ("ddof", "golden"),
    [
        (1, [0.91244, -1.50832, -0.29794, -1.50832, 0.91244, 0.91244, -0.782092]),
        (0, [0.93051, -1.53819, -0.30384, -1.53819, 0.93051, 0.93051, -0.79758]),
    ],
)
def test_undiscounted_all_tokens_of_a_response_share_the_golden_advantage(
    judged_rows: Rows, ddof: int, golden: list[float]
) -> None:
    advantages_BT = step_advantages(ReinforcePP(kl_coef=0.0, whiten_ddof=ddof), judged_rows)
    assert_near(advantages_BT, doubles(golden).unsqueeze(-1).expand(7, 5).tolist(), judged_rows.mask_BT)
    assert (advantages_BT[~judged_rows.mask_BT] == 0).all()


def test_discounted_returns_and_advantages_are_golden(judged_rows: Rows) -> None:
    algorithm = ReinforcePP(kl_coef=0.0, gamma=0.9)
    returns_BT = credited(algorithm, judged_rows).returns_BT
    assert_near(returns_BT[0], [0.6561, 0.729, 0.81, 0.9, 1.0])
    assert_near(returns_BT[2], [0.3645, 0.405, 0.45, 0.5, 0.0])
    advantages_BT = step_advantages(algorithm, judged_rows)
    assert_near(advantages_BT[0], [0.367808, 0.572416, 0.79976, 1.052363, 1.333033])
    assert_near(advantages_BT[1], [-1.473671, -1.473671, -1.473671, 0.0, 0.0])
    assert_near(advantages_BT[2], [-0.450627, -0.336956, -0.210654, -0.070319, 0.0])


def test_a_charged_divergence_gives_the_golden_returns_and_advantages(judged_rows: Rows) -> None:
    algorithm = ReinforcePP(kl_coef=0.1)
    returns_BT = credited(algorithm, judged_rows).returns_BT
    assert_near(returns_BT[0], [0.96, 0.97, 0.95, 0.98, 0.98])
    assert_near(returns_BT[1], [-0.05, -0.01, 0.0, 0.0, 0.0])
    # Each token's own reward is what its return loses to the next.
    rewards_T = returns_BT[0] - doubles([*returns_BT[0][1:].tolist(), 0.0])
    assert_near(rewards_T, [-0.01, 0.02, -0.03, 0.0, 0.98])
    golden = [0.883963, 0.907978, 0.859947, 0.931994, 0.931994]
    assert_near(step_advantages(algorithm, judged_rows)[0], golden)


def test_a_divergence_is_charged_once_by_the_token_and_not_by_the_response(judged_rows: Rows) -> None:
    advantage_B, metrics = judged(ReinforcePP(kl_coef=0.1), judged_rows)
    np.testing.assert_array_equal(advantage_B, judged_rows.reward_B)
    assert metrics["reward_kl"] > 0


def test_the_defaults_are_those_of_the_paper() -> None:
    algorithm = ReinforcePP()
    assert (algorithm.kl_coef, algorithm.kl_in, algorithm.kl_estimator) == (0.01, KlIn.REWARD, KlEstimator.K1)
    assert algorithm.gamma == 1.0 and algorithm.whiten and algorithm.whiten_ddof == 1
    assert algorithm.min_group_size == 1 and algorithm.aggregation is Aggregation.TOKEN_MEAN
    with pytest.raises(InvalidSetting, match=r"gamma is 1\.1"):
        ReinforcePP(gamma=1.1)
