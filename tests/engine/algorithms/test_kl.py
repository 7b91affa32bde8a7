"""The divergence estimators: golden values and gradients, and what each one's gradient pulls towards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.algorithms.kl import KlEstimator, adapted_coefficient, kl_estimate

NEW_BT = torch.tensor([[-0.9, -1.4, -0.9], [-0.1, -2.6, -2.0]], dtype=torch.float64)
REFERENCE_BT = torch.tensor([[-1.1, -1.4, -0.4], [-0.1, -2.0, -3.0]], dtype=torch.float64)
EVERYWHERE_BT = torch.ones(2, 3, dtype=torch.bool)
K3 = [[0.018731, 0.0, 0.148721], [0.0, 0.222119, 0.367879]]
GOLDEN = {
    KlEstimator.K1: [[0.2, 0.0, -0.5], [0.0, -0.6, 1.0]],
    KlEstimator.ABS: [[0.2, 0.0, 0.5], [0.0, 0.6, 1.0]],
    KlEstimator.K2: [[0.02, 0.0, 0.125], [0.0, 0.18, 0.5]],
    KlEstimator.K3: K3,
    KlEstimator.LOW_VAR: K3,
}
GOLDEN_GRADIENT = {
    KlEstimator.K1: [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
    KlEstimator.K2: [[0.2, 0.0, -0.5], [0.0, -0.6, 1.0]],
    KlEstimator.K3: [[0.181269, 0.0, -0.648721], [0.0, -0.822119, 0.632121]],
    KlEstimator.LOW_VAR: [[0.181269, 0.0, -0.648721], [0.0, -0.822119, 0.632121]],
}


def assert_near(actual: Tensor, golden: list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor(golden, dtype=actual.dtype), rtol=0, atol=2e-6)


@pytest.mark.parametrize("estimator", KlEstimator)
def test_values_are_golden(estimator: KlEstimator) -> None:
    assert_near(kl_estimate(NEW_BT, REFERENCE_BT, EVERYWHERE_BT, estimator), GOLDEN[estimator])


@pytest.mark.parametrize("estimator", GOLDEN_GRADIENT)
def test_gradients_are_golden(estimator: KlEstimator) -> None:
    new_BT = NEW_BT.clone().requires_grad_()
    (gradient_BT,) = torch.autograd.grad(kl_estimate(new_BT, REFERENCE_BT, EVERYWHERE_BT, estimator).sum(), new_BT)
    assert_near(gradient_BT, GOLDEN_GRADIENT[estimator])


def test_an_absurd_token_stays_finite_and_under_low_var_small() -> None:
    new_BT, reference_BT = torch.tensor([[-30.0, -0.1]]).double(), torch.tensor([[-1.0, -0.1]]).double()
    everywhere_BT = torch.ones(1, 2, dtype=torch.bool)
    assert_near(kl_estimate(new_BT, reference_BT, everywhere_BT, KlEstimator.K3), [[485165174.40979, 0.0]])
    assert_near(kl_estimate(new_BT, reference_BT, everywhere_BT, KlEstimator.LOW_VAR), [[10.0, 0.0]])


@pytest.mark.parametrize("estimator", KlEstimator)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf")])
def test_junk_at_masked_positions_reaches_neither_value_nor_gradient(estimator: KlEstimator, junk: float) -> None:
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    new_BT = NEW_BT.masked_fill(~mask_BT, junk).requires_grad_()
    kl_BT = kl_estimate(new_BT, REFERENCE_BT.masked_fill(~mask_BT, junk), mask_BT, estimator)
    (gradient_BT,) = torch.autograd.grad(kl_BT.sum(), new_BT)
    assert kl_BT[~mask_BT].tolist() == [0.0, 0.0, 0.0]
    assert gradient_BT[~mask_BT].tolist() == [0.0, 0.0, 0.0]
    assert_near(kl_BT[mask_BT][None], [torch.tensor(GOLDEN[estimator])[mask_BT].tolist()])
    assert gradient_BT.isfinite().all()


def expected_gradient(estimator: KlEstimator, logits_V: Tensor, reference_V: Tensor) -> Tensor:
    """The gradient that the estimator has as a loss, averaged exactly over tokens sampled from the policy."""
    logprobs_V = logits_V.log_softmax(-1)
    everywhere = torch.ones(1, len(logits_V), dtype=torch.bool)
    kl_V = kl_estimate(logprobs_V[None], reference_V[None], everywhere, estimator)[0]
    (gradient_V,) = torch.autograd.grad((logprobs_V.detach().exp() * kl_V).sum(), logits_V)
    return gradient_V


def test_what_each_estimator_pulls_towards_as_a_loss() -> None:
    generator = torch.Generator().manual_seed(7)
    logits_V = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    reference_V = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1)
    logprobs_V = logits_V.log_softmax(-1)
    forward = (logprobs_V.exp() * (logprobs_V - reference_V)).sum()
    reverse = (reference_V.exp() * (reference_V - logprobs_V)).sum()
    (forward_V,) = torch.autograd.grad(forward, logits_V, retain_graph=True)
    (reverse_V,) = torch.autograd.grad(reverse, logits_V)
    assert (forward_V - reverse_V).abs().max() > 0.01

    torch.testing.assert_close(
        expected_gradient(KlEstimator.K2, logits_V, reference_V), forward_V, rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(
        expected_gradient(KlEstimator.K3, logits_V, reference_V), reverse_V, rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(
        expected_gradient(KlEstimator.K1, logits_V, reference_V), torch.zeros(6).double(), rtol=0, atol=1e-14
    )


def test_the_coefficient_moves_by_at_most_a_fifth_of_the_horizons_share() -> None:
    for divergence, error in ((0.1, 0.0), (0.11, 0.1), (0.05, -0.2), (9.0, 0.2), (-3.0, -0.2)):
        moved = adapted_coefficient(0.5, divergence=divergence, responses=100.0, target=0.1, horizon=1000.0)
        assert moved == pytest.approx(0.5 * (1 + error * 0.1), rel=1e-12)
