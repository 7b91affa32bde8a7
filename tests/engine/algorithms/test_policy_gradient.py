"""What the algorithms share around their own loss: divergence, entropy, and the settings of both."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from every_algorithm import ALGORITHMS, every_algorithm, every_mode
from loss_rows import Rows, figures, golden_rows, judged, loss_gradient, loss_of

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.grpo import GRPO
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import KlIn
from engine.algorithms.settings import InvalidSetting
from workers.records import AlgorithmState

# ----------------------------------------------------------------------------- divergence


@every_algorithm
def test_in_the_reward_a_divergence_is_no_part_of_the_loss(random_rows: Rows, name: str) -> None:
    charged = replace(ALGORITHMS[name], kl_coef=0.5, kl_in=KlIn.REWARD, kl_estimator=KlEstimator.K1)
    free, totals = replace(charged, kl_coef=0.0), random_rows.totals()
    assert loss_of(charged, random_rows, totals).value.item() == loss_of(free, random_rows, totals).value.item()
    assert torch.equal(loss_gradient(charged, random_rows, totals), loss_gradient(free, random_rows, totals))
    # It is measured all the same, of the policy as it is now.
    x_BT = (random_rows.new_BT - random_rows.reference_BT)[random_rows.mask_BT]
    assert figures(loss_of(charged, random_rows, totals))["kl"] == pytest.approx(x_BT.mean().item())


@pytest.mark.parametrize("estimator", KlEstimator)
def test_what_is_charged_is_the_divergence_at_the_steps_start(random_rows: Rows, estimator: KlEstimator) -> None:
    x_BT = (random_rows.old_BT - random_rows.reference_BT) * random_rows.mask_BT
    expected_BT = {
        KlEstimator.K1: x_BT,
        KlEstimator.ABS: x_BT.abs(),
        KlEstimator.K2: x_BT**2 / 2,
        KlEstimator.K3: (-x_BT).exp() + x_BT - 1,
        KlEstimator.LOW_VAR: (-x_BT).exp() + x_BT - 1,
    }[estimator]
    charged = GRPO(kl_coef=0.5, kl_in=KlIn.REWARD, kl_estimator=estimator)
    actual_BT = charged.divergence(random_rows.batch(), random_rows.outputs())
    torch.testing.assert_close(actual_BT, expected_BT, rtol=1e-12, atol=1e-14)
    assert charged.needs.old_logprobs and charged.needs.reference


@every_algorithm
def test_where_nothing_is_charged_the_divergence_is_zero_and_asks_for_no_logprobs(random_rows: Rows, name: str) -> None:
    free = replace(ALGORITHMS[name], kl_coef=0.0)
    assert not free.needs.reference and not free.needs.old_logprobs
    assert (free.divergence(random_rows.batch(), random_rows.outputs()) == 0).all()


@every_mode
def test_the_term_is_aggregated_as_the_loss_is(clip_rows: Rows, mode: Aggregation) -> None:
    """On a policy that has not moved: loss = -A + coefficient * k2, so its gradient is theirs."""
    rows = replace(clip_rows, new_BT=clip_rows.old_BT, reference_BT=clip_rows.old_BT - 0.5)
    held = GRPO(kl_coef=0.3, kl_estimator=KlEstimator.K2, aggregation=mode)
    totals = rows.totals()
    free_BT = loss_gradient(replace(held, kl_coef=0.0), rows, totals)
    one_BT = loss_gradient(replace(held, kl_coef=0.0), replace(rows, advantages_BT=-rows.mask_BT.double()), totals)
    torch.testing.assert_close(loss_gradient(held, rows, totals), free_BT + 0.3 * 0.5 * one_BT)


def test_k1_is_refused_in_the_loss_and_nowhere_else() -> None:
    """Pitfall 6: its gradient as a loss is zero in expectation."""
    with pytest.raises(InvalidSetting, match="choose K2"):
        GRPO(kl_coef=0.1, kl_estimator=KlEstimator.K1)
    assert GRPO(kl_coef=0.1, kl_estimator=KlEstimator.K1, kl_in=KlIn.REWARD).charges_reward
    assert GRPO(kl_coef=0.0, kl_estimator=KlEstimator.K1).initial_state() == AlgorithmState(kl_coef=0.0)


# ----------------------------------------------------------------------------- adaptive coefficient

ADAPTIVE = GRPO(kl_coef=0.1, kl_in=KlIn.REWARD, kl_estimator=KlEstimator.K1, kl_target=6.0, kl_horizon=1000.0)


@pytest.mark.parametrize(
    ("divergence", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 0.25),
        (5.4, 1 - 0.1 * 0.25),
        (60.0, 1 + 0.2 * 0.25),
        (-5.0, 1 - 0.2 * 0.25),
        (float("nan"), 1.0),
    ],
)
def test_the_coefficient_follows_the_divergence_within_limits(divergence: float, factor: float) -> None:
    state = ADAPTIVE.next_state(AlgorithmState(kl_coef=0.5), {"reward_kl": divergence, "responses": 250.0})
    assert state.kl_coef == pytest.approx(0.5 * factor, rel=1e-12)


def test_it_reads_the_mean_over_responses_of_their_mean_over_tokens(judged_rows: Rows) -> None:
    _, metrics = judged(ADAPTIVE, judged_rows)
    means = [0.4 / 5, 0.5 / 3, 0.4 / 4, 0.5 / 2, 0.5 / 5, 0.4 / 3, 0.6 / 4]
    assert metrics["reward_kl"] == pytest.approx(sum(means) / 7)
    assert metrics["responses"] == 7
    expected = 0.1 * (1 - 0.2 * 7 / 1000)
    assert ADAPTIVE.next_state(ADAPTIVE.initial_state(), metrics).kl_coef == pytest.approx(expected)


def test_the_adapted_coefficient_is_what_the_next_step_charges(judged_rows: Rows) -> None:
    algorithm = ALGORITHMS["reinforce_pp"]
    for coefficient in (0.0, 0.2):
        state = AlgorithmState(kl_coef=coefficient)
        credit = algorithm.token_credit(judged_rows.batch(), judged_rows.outputs(), judged_rows.reward_B, state)
        assert credit.returns_BT[3, 1].item() == pytest.approx(-0.5 * coefficient)


def test_without_a_target_the_coefficient_stays() -> None:
    fixed = replace(ADAPTIVE, kl_target=0.0)
    assert fixed.next_state(AlgorithmState(kl_coef=0.5), {"reward_kl": 60.0, "responses": 250.0}).kl_coef == 0.5


# ----------------------------------------------------------------------------- entropy


@every_mode
@every_algorithm
def test_the_entropy_bonus_has_the_gradient_of_finite_differences(
    random_rows: Rows, name: str, mode: Aggregation
) -> None:
    algorithm = replace(ALGORITHMS[name], aggregation=mode, entropy_coef=0.1)
    totals = random_rows.totals()

    def value(entropy_BT: torch.Tensor) -> torch.Tensor:
        return loss_of(algorithm, replace(random_rows, entropy_BT=entropy_BT), totals).value

    entropy_BT = random_rows.entropy_BT.clone().requires_grad_()
    assert torch.autograd.gradcheck(value, entropy_BT, eps=1e-6, atol=1e-9, fast_mode=True)
    [gradient_BT] = torch.autograd.grad(value(entropy_BT), entropy_BT)
    assert (gradient_BT[random_rows.mask_BT] < 0).all()


def test_the_bonus_through_logits_is_that_of_finite_differences() -> None:
    """Entropy and log-probs of one distribution: what a trainer differentiates."""
    generator = torch.Generator().manual_seed(3)
    logits_BTV = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    rows = golden_rows([[0.0] * 3] * 2)
    algorithm, totals = GRPO(kl_coef=0.0, entropy_coef=0.3), rows.totals()

    def value(logits_BTV: torch.Tensor) -> torch.Tensor:
        logprobs_BTV = logits_BTV.log_softmax(-1)
        entropy_BT = -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)
        return loss_of(algorithm, replace(rows, new_BT=logprobs_BTV[..., 0], entropy_BT=entropy_BT), totals).value

    assert torch.autograd.gradcheck(value, logits_BTV.requires_grad_(), eps=1e-6, atol=1e-8)


def test_the_bonus_is_subtracted_and_asked_for_only_where_it_counts(clip_rows: Rows) -> None:
    free, curious = (GRPO(kl_coef=0.0, entropy_coef=own, aggregation=Aggregation.TOKEN_MEAN) for own in (0.0, 0.1))
    totals = clip_rows.totals()
    gained = loss_of(free, clip_rows, totals).value - loss_of(curious, clip_rows, totals).value
    assert gained.item() == pytest.approx(0.1 * (1 + 2 + 3 + 4 + 5) / 5)
    assert not free.needs.entropy_gradient and curious.needs.entropy_gradient
    for algorithm in (free, curious):
        metrics = figures(loss_of(algorithm, clip_rows, totals))
        assert metrics["entropy"] == pytest.approx(3.0)
        assert metrics["policy_loss"] == pytest.approx(loss_of(free, clip_rows, totals).value.item())


# ----------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip_low": 1.5}, r"clip_low is 1\.5"),
        ({"clip_high": -0.1}, r"clip_high is -0\.1"),
        ({"clip_dual": 1.0}, r"clip_dual is 1\.0"),
        ({"clip_dual": -3.0}, r"clip_dual is -3\.0"),
        ({"ratio_cap": 1.1}, r"ratio_cap is 1\.1"),
        ({"kl_coef": math.nan}, "kl_coef is nan"),
        ({"entropy_coef": -0.1}, r"entropy_coef is -0\.1"),
        ({"kl_horizon": 0.0}, r"kl_horizon is 0\.0"),
        ({"kl_target": 0.1}, "set kl_in=reward"),
        ({"kl_target": 0.1, "kl_in": KlIn.REWARD, "kl_coef": 0.0}, "kl_coef above 0"),
        ({"whiten_ddof": 2}, "whiten_ddof is 2"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        GRPO(**settings)
