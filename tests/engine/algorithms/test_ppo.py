"""PPO: credit from a critic, and what the critic learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from every_algorithm import every_mode
from loss_rows import Rows, assert_near, credited, doubles, figures, gradient, judged, loss_of, rows_of, step_advantages

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import KlIn
from engine.algorithms.ppo import PPO
from engine.algorithms.settings import InvalidSetting
from workers.records import Loss, MissingOutput, ModelOutputs

# ----------------------------------------------------------------------------- credit


@pytest.fixture
def valued_rows() -> Rows:
    """The golden example of GAE. Between policy and reference lies what charges the second response's token 0.1."""
    return rows_of(
        torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=torch.bool),
        old_BT=doubles([[0.0] * 6, [0.0, 0.1, 0.0, 9.0, 9.0, 9.0]]),
        reference_BT=torch.zeros(2, 6, dtype=torch.float64),
        old_values_BT=doubles([[0.5, 0.4, 7.0, 8.0, 0.3, 0.2], [0.1, 0.2, 0.3, 9.0, 9.0, 9.0]]),
        reward_B=doubles([1.0, 0.5]),
    )


def test_advantages_and_returns_are_golden_through_a_tool_span(valued_rows: Rows) -> None:
    """Pitfall 10."""
    credit = credited(PPO(gamma=0.99, lam=0.95, critic_lam=0.95, kl_coef=1.0), valued_rows)
    assert_near(credit.advantages_BT, [[0.374433, 0.508701, 0, 0, 0.6504, 0.8], [0.272087, 0.1851, 0.2, 0, 0, 0]])
    assert_near(credit.returns_BT, [[0.874433, 0.908701, 0, 0, 0.9504, 1.0], [0.372087, 0.3851, 0.5, 0, 0, 0]])


@pytest.mark.parametrize(
    ("ddof", "golden"),
    [
        (1, [[-0.224339, 0.346009, 0, 0, 0.947924, 1.583401], [-0.659093, -1.028598, -0.965305, 0, 0, 0]]),
        (0, [[-0.242314, 0.373733, 0, 0, 1.023875, 1.710269], [-0.711901, -1.111013, -1.042648, 0, 0, 0]]),
    ],
)
def test_whitened_advantages_are_golden(valued_rows: Rows, ddof: int, golden: list[list[float]]) -> None:
    algorithm = PPO(gamma=0.99, lam=0.95, kl_coef=1.0, whiten_ddof=ddof)
    assert_near(step_advantages(algorithm, valued_rows), golden)


def test_without_discount_the_return_is_the_reward_to_go(valued_rows: Rows) -> None:
    credit = credited(PPO(gamma=1.0, lam=1.0, critic_lam=1.0, kl_coef=1.0), valued_rows)
    assert_near(credit.advantages_BT, [[0.5, 0.6, 0, 0, 0.7, 0.8], [0.3, 0.2, 0.2, 0, 0, 0]])
    assert_near(credit.returns_BT, [[1.0, 1.0, 0, 0, 1.0, 1.0], [0.4, 0.4, 0.5, 0, 0, 0]])


def test_policy_and_critic_may_trust_the_outcome_differently(valued_rows: Rows) -> None:
    credit = credited(PPO(gamma=0.99, lam=0.95, critic_lam=1.0, kl_coef=1.0), valued_rows)
    assert_near(credit.advantages_BT[0], [0.374433, 0.508701, 0, 0, 0.6504, 0.8])
    # The discounted reward that did come, whatever the critic said.
    assert_near(credit.returns_BT[0], [0.99**3, 0.99**2, 0, 0, 0.99, 1.0])


def test_the_divergence_is_charged_by_the_token_with_the_coefficient_of_the_state(valued_rows: Rows) -> None:
    algorithm = PPO(gamma=1.0, lam=1.0, critic_lam=1.0, kl_coef=1.0)
    advantage_B, _ = judged(algorithm, valued_rows)
    np.testing.assert_array_equal(advantage_B, valued_rows.reward_B)
    state = replace(algorithm.initial_state(), kl_coef=2.0)
    credit = algorithm.token_credit(valued_rows.batch(), valued_rows.outputs(), valued_rows.reward_B, state)
    assert_near(credit.returns_BT[1], [0.3, 0.3, 0.5, 0, 0, 0])


# ----------------------------------------------------------------------------- the critic's loss


@pytest.fixture
def critic_rows() -> Rows:
    """The golden example of the value loss."""
    return rows_of(
        torch.tensor([[True, True, True], [True, True, False]]),
        values_BT=doubles([[0.5, 1.2, 0.0], [0.0, 0.4, 2.0]]),
        old_values_BT=doubles([[0.4, 0.4, 0.4], [0.1, 0.1, 0.1]]),
        returns_BT=doubles([[1.0, 1.3, 1.0], [0.0, 1.0, 0.0]]),
    )


def value_loss(algorithm: PPO, rows: Rows) -> Loss:
    return algorithm.value_loss(rows.values_BT, rows.experience(), rows.totals())


def value_gradient(algorithm: PPO, rows: Rows) -> torch.Tensor:
    return gradient(lambda own: value_loss(algorithm, own).value, rows, "values_BT")


def test_the_value_loss_is_golden(critic_rows: Rows) -> None:
    clipped = figures(value_loss(PPO(value_clip=0.5), critic_rows))
    assert clipped["value"] == clipped["value_loss"] == pytest.approx(0.177, abs=2e-6)
    assert clipped["value_clipped"] == pytest.approx(1 / 5)
    unclipped = figures(value_loss(PPO(value_clip=0.0), critic_rows))
    assert unclipped["value"] == pytest.approx(0.162, abs=2e-6)
    assert unclipped["value_clipped"] == 0.0


def test_a_value_that_moved_far_enough_sends_no_gradient(critic_rows: Rows) -> None:
    """(v - return) / tokens, and nothing where the value is past its bound on the way to the return."""
    errors = [[-0.5, 0.0, -1.0], [0.0, -0.6, 0.0]]
    assert_near(5 * value_gradient(PPO(value_clip=0.5), critic_rows), errors)
    errors[0][1] = -0.1
    assert_near(5 * value_gradient(PPO(value_clip=0.0), critic_rows), errors)


@every_mode
@pytest.mark.parametrize("value_clip", [0.0, 0.5])
def test_the_value_gradient_is_that_of_finite_differences(
    random_rows: Rows, mode: Aggregation, value_clip: float
) -> None:
    algorithm = PPO(aggregation=mode, value_clip=value_clip)

    def value(values_BT: torch.Tensor) -> torch.Tensor:
        return value_loss(algorithm, replace(random_rows, values_BT=values_BT)).value

    assert torch.autograd.gradcheck(value, random_rows.values_BT.clone().requires_grad_(), eps=1e-7, atol=1e-7)


@every_mode
def test_the_critics_loss_is_normalised_by_the_step_and_not_by_the_micro_batch(
    random_rows: Rows, mode: Aggregation
) -> None:
    """Pitfall 3."""
    algorithm, totals = PPO(aggregation=mode), random_rows.totals()
    parts = [random_rows.at(rows) for rows in ([2], [4, 1], [], [0, 3, 5])]
    shares = [algorithm.value_loss(part.values_BT, part.experience(), totals).value.item() for part in parts]
    assert sum(shares) == pytest.approx(value_loss(algorithm, random_rows).value.item(), rel=1e-12)


def test_what_explained_variance_is_made_of_is_measured(critic_rows: Rows) -> None:
    metrics = figures(value_loss(PPO(), critic_rows))
    returns, surprises = [1.0, 1.3, 1.0, 0.0, 1.0], [0.6, 0.9, 0.6, -0.1, 0.9]
    assert metrics["return"] == pytest.approx(sum(returns) / 5)
    assert metrics["return_squared"] == pytest.approx(sum(own**2 for own in returns) / 5)
    assert metrics["surprise"] == pytest.approx(sum(surprises) / 5)
    assert metrics["surprise_squared"] == pytest.approx(sum(own**2 for own in surprises) / 5)


# ----------------------------------------------------------------------------- the policy's loss, settings


def test_the_policys_loss_is_the_clipped_surrogate_and_reads_no_value(clip_rows: Rows) -> None:
    algorithm = PPO(clip_high=0.28)
    assert loss_of(algorithm, clip_rows, clip_rows.totals()).value.item() == pytest.approx(-0.206818, abs=2e-6)
    assert algorithm.needs.critic
    unvalued = ModelOutputs(tensors={"old_logprobs_BT": clip_rows.old_BT, "reference_logprobs_BT": clip_rows.old_BT})
    with pytest.raises(MissingOutput, match="values_BT"):
        algorithm.token_credit(clip_rows.batch(), unvalued, clip_rows.reward_B, algorithm.initial_state())


def test_in_its_first_steps_the_critic_may_learn_alone() -> None:
    assert [PPO(critic_warmup_steps=2).trains_policy(step) for step in range(4)] == [False, False, True, True]
    assert PPO().trains_policy(0)


def test_the_defaults_are_those_of_the_field() -> None:
    algorithm = PPO()
    assert (algorithm.gamma, algorithm.lam, algorithm.value_clip) == (1.0, 0.95, 0.5)
    assert (algorithm.clip_low, algorithm.clip_high) == (0.2, 0.2)
    assert (algorithm.kl_in, algorithm.kl_estimator) == (KlIn.REWARD, KlEstimator.K1)
    assert algorithm.whiten and algorithm.min_group_size == 1 and algorithm.credits_tokens


@pytest.mark.parametrize("name", ["gamma", "lam", "critic_lam", "value_clip", "critic_warmup_steps"])
def test_a_setting_that_cannot_work_is_named(name: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{name} is -1"):
        PPO(**{name: -1})
