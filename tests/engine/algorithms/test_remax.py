"""ReMax: the reward still to come, against the policy's own greedy answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from loss_rows import Rows, assert_near, credited, outcomes, step_advantages

from engine.algorithms.policy_gradient import KlIn
from engine.algorithms.remax import ReMax

GREEDY = [0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 0.0]


def test_advantages_are_golden(judged_rows: Rows) -> None:
    advantages_BT = step_advantages(ReMax(kl_coef=0.1), judged_rows, greedy=GREEDY)
    assert_near(advantages_BT[0], [0.46, 0.47, 0.45, 0.48, 0.48])
    assert_near(advantages_BT[1], [-0.55, -0.51, -0.5, 0.0, 0.0])
    assert_near(advantages_BT[6], [0.24, 0.24, 0.24, 0.28, 0.0])


def test_a_response_is_worth_its_distance_from_the_greedy_one() -> None:
    advantage_B = ReMax().advantage(outcomes([1.0, 0.0, 0.25], [4, 4, 9], greedy=[0.5, 0.5, 1.0]))
    assert advantage_B.tolist() == [0.5, -0.5, -0.75]


def test_without_a_divergence_every_token_is_worth_what_its_response_is(judged_rows: Rows) -> None:
    advantages_BT = step_advantages(ReMax(kl_coef=0.0), judged_rows, greedy=GREEDY)
    expected_B = judged_rows.reward_B.numpy() - np.array(GREEDY)
    for row, length in enumerate([5, 3, 4, 2, 5, 3, 4]):
        np.testing.assert_allclose(advantages_BT[row, :length], expected_B[row], rtol=0, atol=1e-15)


def test_a_batch_as_wide_as_it_is_high_is_not_transposed(judged_rows: Rows) -> None:
    """Pitfall 31: a baseline per response that is spread over positions goes unnoticed where B equals T."""
    square = replace(judged_rows, advantage_B=judged_rows.reward_B - 0.25).at([0, 1, 2, 3, 4])
    assert square.mask_BT.shape == (5, 5)
    whole = credited(ReMax(kl_coef=0.0), square).advantages_BT
    for row in range(5):
        assert set(whole[row][square.mask_BT[row]].tolist()) == {square.reward_B[row].item() - 0.25}


def test_the_baseline_is_not_discounted_and_the_outcome_is(judged_rows: Rows) -> None:
    advantages_BT = step_advantages(ReMax(kl_coef=0.0, gamma=0.9), judged_rows, greedy=GREEDY)
    assert_near(advantages_BT[2], [0.3645 - 0.5, 0.405 - 0.5, 0.45 - 0.5, 0.0, 0.0])


def test_it_asks_for_one_more_greedy_response_and_normalises_nothing() -> None:
    algorithm = ReMax()
    assert algorithm.needs.greedy and algorithm.min_group_size == 1
    assert not algorithm.whiten and not algorithm.needs.critic
    assert algorithm.kl_in is KlIn.REWARD
