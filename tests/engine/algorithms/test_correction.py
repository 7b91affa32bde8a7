"""Rollout correction: weights without a gradient, applied once, to the policy's term alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from every_algorithm import ALGORITHMS, every_algorithm, every_mode
from loss_rows import Rows, assert_near, doubles, figures, gradient, loss_gradient, loss_of, rows_of

from engine.algorithms.aggregation import Aggregation, token_mean
from engine.algorithms.correction import Corrected, Correction, ImportanceWeight
from engine.algorithms.grpo import GRPO
from engine.algorithms.kl import KlEstimator
from engine.algorithms.settings import InvalidSetting

every_weight = pytest.mark.parametrize("weight", ImportanceWeight)
NONE = Correction(weight=ImportanceWeight.NONE)
RATIOS = [[0.904837, 2.225541, 0.951229], [0.980199, 0.548812, 0.0]]
SEQUENCE_RATIOS = [[1.915541] * 3, [0.537944, 0.537944, 0.0]]
GEOMETRIC_RATIOS = [1.24193, 0.733447]


@pytest.fixture
def mismatched() -> Rows:
    """The golden example of importance weights; the policy has not moved yet."""
    return rows_of(
        torch.tensor([[True, True, True], [True, True, False]]),
        old_BT=doubles([[-1.0, -2.0, -0.5], [-0.3, -1.2, -4.0]]),
        rollout_BT=doubles([[-0.9, -2.8, -0.45], [-0.28, -0.6, -4.0]]),
        advantages_BT=doubles([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]),
    )


def corrected(correction: Correction, rows: Rows) -> Corrected:
    return correction.of(rows.policy(), rows.experience())


def means(correction: Correction, rows: Rows) -> dict[str, float]:
    """The metrics as a step reports them: means over its action tokens."""
    metrics_BT = corrected(correction, rows).metrics_BT
    return {name: token_mean(value_BT, rows.batch(), rows.totals()).item() for name, value_BT in metrics_BT.items()}


# ----------------------------------------------------------------------------- the weights


@pytest.mark.parametrize(
    ("correction", "golden"),
    [
        (NONE, [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]),
        (Correction(weight=ImportanceWeight.TOKEN_TIS, cap=9.0), RATIOS),
        (Correction(weight=ImportanceWeight.TOKEN_TIS, cap=2.0), [[0.904837, 2, 0.951229], [0.980199, 0.548812, 0]]),
        (
            Correction(weight=ImportanceWeight.TOKEN_TIS, cap=2.0, floor=0.95),
            [[0.95, 2, 0.951229], [0.980199, 0.95, 0]],
        ),
        (
            Correction(weight=ImportanceWeight.TOKEN_MASK, floor=0.5, cap=2.0),
            [[0.904837, 0, 0.951229], [0.980199, 0.548812, 0]],
        ),
        (Correction(weight=ImportanceWeight.TOKEN_MASK, floor=0.6, cap=5.0), [RATIOS[0], [0.980199, 0, 0]]),
        (Correction(weight=ImportanceWeight.SEQUENCE_TIS), SEQUENCE_RATIOS),
        (Correction(weight=ImportanceWeight.SEQUENCE_TIS, cap=1.5), [[1.5] * 3, SEQUENCE_RATIOS[1]]),
        (Correction(weight=ImportanceWeight.SEQUENCE_MASK, cap=1.5), [[0.0] * 3, SEQUENCE_RATIOS[1]]),
        (Correction(weight=ImportanceWeight.SEQUENCE_MASK, cap=3.0, floor=0.6), [SEQUENCE_RATIOS[0], [0.0] * 3]),
    ],
)
def test_weights_are_golden(mismatched: Rows, correction: Correction, golden: list[list[float]]) -> None:
    assert_near(corrected(correction, mismatched).weight_BT, golden)


@every_weight
def test_where_engine_and_trainer_agree_every_weight_is_exactly_one(mismatched: Rows, weight: ImportanceWeight) -> None:
    """Pitfall 21: with old := rollout the ratio spans the mismatch, and nothing is counted twice."""
    bypass = replace(mismatched, old_BT=mismatched.rollout_BT)
    correction = Correction(weight=weight, floor=0.5, geometric_low=0.999, geometric_high=1.001)
    weight_BT = corrected(correction, bypass).weight_BT
    assert torch.equal(weight_BT, bypass.mask_BT.double())
    algorithm = GRPO(kl_coef=0.0, correction=correction)
    uncorrected = replace(algorithm, correction=NONE)
    totals = bypass.totals()
    assert loss_of(algorithm, bypass, totals).value.item() == loss_of(uncorrected, bypass, totals).value.item()


@every_weight
def test_weights_carry_no_gradient(random_rows: Rows, weight: ImportanceWeight) -> None:
    """Pitfall 21: also where the policy's own log-probs are the old ones, as on a step's only update."""
    leaf = random_rows.old_BT.clone().requires_grad_()
    own = corrected(Correction(weight=weight, drift_limit=0.1), replace(random_rows, new_BT=leaf, old_BT=leaf))
    assert not own.weight_BT.requires_grad
    assert not any(metric_BT.requires_grad for metric_BT in own.metrics_BT.values())


@every_mode
@every_algorithm
def test_a_loss_is_weighted_once(random_rows: Rows, name: str, mode: Aggregation) -> None:
    """Pitfall 21: a weight of w for a whole row multiplies that row's gradient by w, not by its square."""
    algorithm = replace(ALGORITHMS[name], aggregation=mode, kl_coef=0.0, entropy_coef=0.0)
    weighted = replace(algorithm, correction=Correction(weight=ImportanceWeight.SEQUENCE_TIS, cap=100.0))
    plain_BT = loss_gradient(replace(algorithm, correction=NONE), random_rows, random_rows.totals())
    weight_BT = corrected(weighted.correction, random_rows).weight_BT
    assert (weight_BT[random_rows.mask_BT] - 1).abs().max() > 0.2
    actual_BT = loss_gradient(weighted, random_rows, random_rows.totals())
    torch.testing.assert_close(actual_BT, weight_BT * plain_BT, rtol=1e-12, atol=1e-15)


def test_divergence_and_entropy_are_not_weighted(random_rows: Rows) -> None:
    rejecting = Correction(weight=ImportanceWeight.SEQUENCE_MASK, floor=1.0, cap=1.0)
    algorithm = GRPO(kl_coef=0.3, kl_estimator=KlEstimator.K2, entropy_coef=0.1, correction=rejecting)
    totals = random_rows.totals()
    assert figures(loss_of(algorithm, random_rows, totals))["policy_loss"] == 0.0
    for name in ("new_BT", "entropy_BT"):
        unweighted = replace(random_rows, rollout_BT=random_rows.old_BT, advantages_BT=0 * random_rows.advantages_BT)
        expected_BT = loss_gradient(algorithm, unweighted, totals, name)
        assert expected_BT.abs().sum() > 0
        torch.testing.assert_close(loss_gradient(algorithm, random_rows, totals, name), expected_BT)


# ----------------------------------------------------------------------------- whole responses


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({}, [True, True]),
        ({"geometric_high": 1.2419}, [False, True]),
        ({"geometric_high": 1.2420}, [True, True]),
        ({"geometric_low": 0.7335}, [True, False]),
        ({"geometric_low": 0.7334}, [True, True]),
        ({"geometric_low": 0.999, "geometric_high": 1.001}, [False, False]),
    ],
)
def test_a_response_is_kept_while_its_geometric_mean_is_within_bounds(
    mismatched: Rows, bounds: dict[str, float], kept: list[bool]
) -> None:
    assert [math.exp(0.65 / 3), math.exp(-0.62 / 2)] == pytest.approx(GEOMETRIC_RATIOS, abs=2e-6)
    weight_BT = corrected(Correction(cap=2.0, **bounds), mismatched).weight_BT
    unbounded_BT = corrected(Correction(cap=2.0), mismatched).weight_BT
    assert torch.equal(weight_BT, unbounded_BT * torch.tensor(kept).unsqueeze(-1))


@every_mode
def test_what_is_rejected_stays_in_the_denominator(random_rows: Rows, mode: Aggregation) -> None:
    """Pitfall 22: the others pull exactly as they would without it."""
    tight = Correction(weight=ImportanceWeight.NONE, geometric_low=0.97, geometric_high=1.03)
    algorithm, totals = GRPO(kl_coef=0.0, aggregation=mode, correction=tight), random_rows.totals()
    kept_B = corrected(tight, random_rows).weight_BT.any(dim=-1)
    assert 0 < kept_B.sum() < 6
    plain_BT = loss_gradient(replace(algorithm, correction=NONE), random_rows, totals)
    actual_BT = loss_gradient(algorithm, random_rows, totals)
    assert torch.equal(actual_BT, plain_BT * kept_B.unsqueeze(-1))
    metrics = figures(loss_of(algorithm, random_rows, totals))
    rejected_tokens = int(random_rows.mask_BT[~kept_B].sum())
    assert metrics["correction_rejected"] == pytest.approx(rejected_tokens / totals.tokens)


def test_a_batch_that_is_rejected_as_a_whole_has_loss_zero_and_zero_gradient(mismatched: Rows) -> None:
    tight = Correction(geometric_low=0.999, geometric_high=1.001)
    algorithm, totals = GRPO(kl_coef=0.0, correction=tight), mismatched.totals()
    assert loss_of(algorithm, mismatched, totals).value.item() == 0.0
    assert loss_gradient(algorithm, mismatched, totals).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("advantages", "limit", "kept"),
    [
        ((-1.0, -1.0), 0.1, [True, False]),
        ((-1.0, 1.0), 0.1, [True, True]),
        ((1.0, 0.0), 0.1, [True, True]),
        ((-1.0, -1.0), 0.4, [True, True]),
        ((-1.0, -1.0), math.inf, [True, True]),
    ],
)
def test_only_a_response_to_be_made_less_likely_is_rejected_for_drift(
    mismatched: Rows, advantages: tuple[float, float], limit: float, kept: list[bool]
) -> None:
    """Mean of log mu - log pi: -0.217 for the first response, 0.31 for the second."""
    advantages_BT = doubles(advantages).unsqueeze(-1).expand(2, 3)
    rows = replace(mismatched, advantages_BT=advantages_BT)
    weight_BT = corrected(replace(NONE, drift_limit=limit), rows).weight_BT
    assert torch.equal(weight_BT, rows.mask_BT * torch.tensor(kept, dtype=torch.float64).unsqueeze(-1))


def test_drift_is_of_the_policy_that_learns_and_not_of_the_steps_start(mismatched: Rows) -> None:
    rows = replace(mismatched, new_BT=mismatched.rollout_BT, advantages_BT=-mismatched.mask_BT.double())
    assert corrected(replace(NONE, drift_limit=0.0), rows).weight_BT.sum() == 5


# ----------------------------------------------------------------------------- what to know about it


def test_metrics_tell_the_mismatch_and_what_was_done_about_it(mismatched: Rows) -> None:
    log_ratios = [-0.1, 0.8, -0.05, -0.02, -0.6]
    ratios = [math.exp(own) for own in log_ratios]
    metrics = means(Correction(weight=ImportanceWeight.TOKEN_TIS, cap=2.0), mismatched)
    assert metrics["mismatch_k3"] == pytest.approx(sum(math.exp(own) - 1 - own for own in log_ratios) / 5)
    assert metrics["mismatch_chi2"] == pytest.approx(sum(own**2 - 1 for own in ratios) / 5)
    capped = [min(own, 2.0) for own in ratios]
    assert metrics["correction_weight"] == pytest.approx(sum(capped) / 5)
    assert metrics["correction_weight_squared"] == pytest.approx(sum(own**2 for own in capped) / 5)
    assert (metrics["correction_clipped"], metrics["correction_rejected"]) == (1 / 5, 0.0)
    masking = means(Correction(weight=ImportanceWeight.TOKEN_MASK, cap=2.0), mismatched)
    assert (masking["correction_clipped"], masking["correction_rejected"]) == (0.0, 1 / 5)


@every_weight
def test_an_absurd_mismatch_gives_finite_numbers(mismatched: Rows, weight: ImportanceWeight) -> None:
    for far in (-300.0, 300.0):
        rows = replace(mismatched, rollout_BT=(mismatched.old_BT + far).float(), old_BT=mismatched.old_BT.float())
        own = corrected(Correction(weight=weight), rows)
        assert own.weight_BT.isfinite().all()
        assert all(metric_BT.isfinite().all() for metric_BT in own.metrics_BT.values())
    value = gradient(lambda own: loss_of(GRPO(kl_coef=0.0), own, own.totals()).value, rows)
    assert value.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cap": 0.5}, r"cap is 0\.5"),
        ({"cap": math.nan}, "cap is nan"),
        ({"floor": 1.5}, r"floor=1\.5"),
        ({"floor": -0.1}, r"floor=-0\.1"),
        ({"geometric_low": 1.1}, r"geometric_low is 1\.1"),
        ({"geometric_high": 0.9}, r"geometric_high 0\.9"),
        ({"drift_limit": -0.1}, r"drift_limit is -0\.1"),
        ({"drift_limit": math.nan}, "drift_limit is nan"),
    ],
)
def test_a_setting_under_which_agreement_would_not_pass_is_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        Correction(**settings)
