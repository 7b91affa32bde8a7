"""Log-probs a tile at a time are those of all logits at once, forwards and backwards, and never hold all of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from workers import linear_logprobs as module
from workers.linear_logprobs import Term, TileSize, linear_logprobs

TOKENS, VOCABULARY, HIDDEN, RANK = 23, 31, 12, 3
TEMPERATURE = 0.7


@pytest.fixture(
    params=[(1, 31), (7, 5), (23, 31), (23, 30), (4, 1), (1000, 1000)], ids=lambda size: "x".join(map(str, size))
)
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, words = request.param
    monkeypatch.setattr(module, "TILE", {"cpu": TileSize(tokens=tokens, words=words)})


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Hidden states, head, bias, what an adapter reads and writes."""
    random = torch.Generator().manual_seed(3)
    shapes = [(TOKENS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,), (TOKENS, RANK), (VOCABULARY, RANK)]
    made = [torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes]
    return tuple(tensor.requires_grad_(True) for tensor in made)


def targets() -> Tensor:
    return torch.randint(0, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(4))


def ours(hidden: Tensor, head: Tensor, bias: Tensor, read: Tensor, up: Tensor, *, entropy_gradient: bool = True):
    terms = [Term(read_NK=hidden, weight_VK=head), Term(read_NK=read, weight_VK=up)]
    return linear_logprobs(terms, bias, targets(), temperature=TEMPERATURE, entropy_gradient=entropy_gradient)


def plain(hidden: Tensor, head: Tensor, bias: Tensor, read: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """By PyTorch's own functions, all logits at once."""
    logits = (hidden @ head.T + bias + read @ up.T) / TEMPERATURE
    all_logprobs = logits.log_softmax(-1)
    return all_logprobs[torch.arange(TOKENS), targets()], -(all_logprobs.exp() * all_logprobs).sum(-1)


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    weights = torch.linspace(-1.0, 2.0, TOKENS, dtype=torch.float64)
    return torch.autograd.grad(sum((weights * output.double()).sum() for output in outputs), inputs)


@pytest.mark.usefixtures("_tile")
def test_values_and_gradients_are_those_of_all_logits_at_once() -> None:
    own, expected = ours(*tensors()), plain(*tensors())
    for value, other in zip(own, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-13, atol=1e-13)
    inputs, others = tensors(), tensors()
    for grad, other in zip(gradients(ours(*inputs), inputs), gradients(plain(*others), others), strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-11, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(ours, tensors())


@pytest.mark.usefixtures("_tile")
def test_without_its_gradient_an_entropy_pulls_at_nothing() -> None:
    inputs, others = tensors(), tensors()
    logprobs, entropy = ours(*inputs, entropy_gradient=False)
    assert not entropy.requires_grad
    torch.testing.assert_close(entropy, plain(*others)[1])
    for grad, other in zip(gradients([logprobs], inputs), gradients(plain(*others)[:1], others), strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("learned", range(5), ids=["hidden", "head", "bias", "read", "up"])
def test_what_is_not_learned_costs_no_gradient_and_changes_no_other(learned: int) -> None:
    """As with a frozen head under an adapter."""
    inputs, others = tensors(), tensors()
    for number, tensor in enumerate(inputs):
        tensor.requires_grad_(number == learned)
    [grad] = gradients(ours(*inputs), [inputs[learned]])
    torch.testing.assert_close(grad, gradients(plain(*others), others)[learned], rtol=1e-11, atol=1e-12)
    assert all(tensor.grad is None for tensor in inputs)


@pytest.mark.parametrize("words", [1, 2, 3])
def test_extreme_logits_stay_finite(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is all but certain, one that is all but impossible."""
    monkeypatch.setattr(module, "TILE", {"cpu": TileSize(tokens=2, words=words)})
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    head = torch.tensor([[3e4], [-3e4], [0.0]], requires_grad=True)
    logprobs, entropy = linear_logprobs(
        [Term(read_NK=hidden, weight_VK=head)], None, torch.tensor([0, 1]), temperature=1.0, entropy_gradient=True
    )
    assert logprobs.tolist() == [0.0, -6e4] and entropy.tolist() == [0.0, 0.0]
    (logprobs.sum() + entropy.sum()).backward()
    assert head.grad.isfinite().all() and hidden.grad.isfinite().all()
    assert head.grad.squeeze(1).tolist() == [-1.0, 1.0, 0.0]


def test_halves_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of many small parts, a token a tile: summed in bfloat16 it would stop growing at 256 of them."""
    monkeypatch.setattr(module, "TILE", {"cpu": TileSize(tokens=1, words=2)})
    tokens = 2000
    hidden = torch.ones(tokens, 1, dtype=torch.bfloat16)
    head = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    terms = [Term(read_NK=hidden, weight_VK=head)]
    logprobs, _ = linear_logprobs(
        terms, None, torch.zeros(tokens, dtype=torch.long), temperature=1.0, entropy_gradient=False
    )
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert head.grad.dtype == torch.bfloat16
    assert head.grad.squeeze(1).tolist() == [1000.0, -1000.0]  # half of what each token pulls with


class Largest(TorchDispatchMode):
    """Counts the numbers of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("way", ["forward", "forward and backward"])
def test_no_tensor_holds_more_logits_than_a_tile(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", {"cpu": TileSize(tokens=100, words=130)})
    hidden = torch.randn(4000, 4, requires_grad=True)
    head = torch.randn(500, 4, requires_grad=True)
    target = torch.randint(0, 500, (4000,))
    with Largest() as largest:
        logprobs, _ = linear_logprobs(
            [Term(read_NK=hidden, weight_VK=head)], None, target, temperature=1.0, entropy_gradient=True
        )
        if way != "forward":
            logprobs.sum().backward()
    # A tile of logits; backwards the gradient of hidden states is larger.
    assert largest.numbers == (100 * 130 if way == "forward" else 4000 * 4)
