"""Log-probs from hidden states: ours, tile by tile, and with all logits at once.

Suffixes: `N` tokens, `V` vocabulary, `H` hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.bench.memory import in_pieces
from tests.gpu._device import GIB, Taken, taken, tidy

SEED = 0
CHECKED_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadCase:
    name: str
    tokens: int
    vocabulary: int
    hidden: int


CASES = (
    HeadCase(name="Qwen2.5-0.5B", tokens=8192, vocabulary=151_936, hidden=896),
    HeadCase(name="Qwen2.5-1.5B", tokens=8192, vocabulary=151_936, hidden=1536),
    HeadCase(name="4096 wide", tokens=32_768, vocabulary=151_936, hidden=4096),
)
TINY = (HeadCase(name="tiny", tokens=1100, vocabulary=1100, hidden=32),)
"""More than one tile each way."""

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
"""[N, H] hidden states, [V, H] weights and [N] targets to [N] log-probs."""


def in_tiles(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor) -> Tensor:
    """Ours."""
    return in_pieces(hidden_NH, weight_VH, target_N)[0]


def materialised(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor) -> Tensor:
    """All logits at once, and their cross entropy in float32: no entropy is told of them, as ours does."""
    return -cross_entropy((hidden_NH @ weight_VH.T).float(), target_N, reduction="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassFigures:
    """One way's forward pass, or forward and backward.

    A product of all tokens and the head is 2 N V H operations: forward needs one, backward two more. `share` counts
    those alone.
    """

    seconds: float
    tflops: float
    share: float
    """Of the measured matmul peak: what the goal of 60% is about."""
    extra_gib: float
    """At the peak, beside inputs and gradients: what the goal of 1 GB is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFigures:
    """A case, both ways; None where memory has no room for a way."""

    case: str
    tokens: int
    vocabulary: int
    hidden: int
    forward: PassFigures | None
    train: PassFigures | None
    train_share_done: float | None
    """Of the matmul peak, with the logits that backward makes again counted: how busy products kept the device."""
    naive_forward: PassFigures | None
    naive_train: PassFigures | None
    logprob_difference: float
    gradient_difference: float
    """See `differences`."""


def measure_head(case: HeadCase, device: torch.device, *, peak: float, repeats: int) -> HeadFigures:
    """`peak`: operations a second."""
    product = 2.0 * case.tokens * case.vocabulary * case.hidden
    logprob_difference, gradient_difference, _ = differences(case, device)
    inputs = made(case, device)
    found: list[PassFigures | None] = []
    for way in (in_tiles, materialised):
        for backward, products in ((False, 1), (True, 3)):
            own = taken(partial(_pass, way, inputs, backward=backward), device, repeats=repeats)
            handed_out = sum(tensor.nbytes for tensor in inputs[:2]) * backward
            found.append(_figures(own, products * product, handed_out, peak))
    forward, train, naive_forward, naive_train = found
    return HeadFigures(
        case=case.name,
        tokens=case.tokens,
        vocabulary=case.vocabulary,
        hidden=case.hidden,
        forward=forward,
        train=train,
        train_share_done=train.share * 4 / 3 if train else None,
        naive_forward=naive_forward,
        naive_train=naive_train,
        logprob_difference=logprob_difference,
        gradient_difference=gradient_difference,
    )


def made(case: HeadCase, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and weights in bfloat16, whose logits are spread as those of a model; and targets."""
    random = torch.Generator(device=device).manual_seed(SEED)
    hidden_NH = torch.randn(case.tokens, case.hidden, generator=random, device=device)
    weight_VH = torch.randn(case.vocabulary, case.hidden, generator=random, device=device) / case.hidden**0.5
    target_N = torch.randint(0, case.vocabulary, (case.tokens,), generator=random, device=device)
    return hidden_NH.bfloat16().requires_grad_(True), weight_VH.bfloat16().requires_grad_(True), target_N


def _pass(way: Way, inputs: tuple[Tensor, Tensor, Tensor], *, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        logprobs_N = way(*inputs)
    if backward:
        torch.autograd.grad(_weighted(logprobs_N), inputs[:2])


def _weighted(logprobs_N: Tensor) -> Tensor:
    """Tokens pull with all strengths, up and down."""
    return (logprobs_N * torch.linspace(-1.0, 1.0, len(logprobs_N), device=logprobs_N.device)).sum()


def _figures(own: Taken | None, flops: float, handed_out: int, peak: float) -> PassFigures | None:
    if own is None:
        return None
    return PassFigures(
        seconds=own.seconds,
        tflops=flops / own.seconds / 1e12,
        share=flops / own.seconds / peak,
        extra_gib=max(0.0, own.extra_gib - handed_out / GIB),
    )


def differences(case: HeadCase, device: torch.device, *, tokens: int = CHECKED_TOKENS) -> tuple[float, float, float]:
    """Between ours on bfloat16 numbers and logits of the very same numbers materialised in float32: the largest of
    log-probs, and of gradients over the largest gradient; third, the largest logit, whose rounding explains the first.

    Of the first `tokens` alone: all logits have room then.
    """
    hidden_NH, weight_VH, target_N = made(case, device)
    hidden_NH, target_N = hidden_NH.detach()[:tokens].requires_grad_(True), target_N[:tokens]
    exact_NH, exact_VH = (tensor.detach().float().requires_grad_(True) for tensor in (hidden_NH, weight_VH))
    own_N = in_tiles(hidden_NH, weight_VH, target_N)
    own = torch.autograd.grad(_weighted(own_N), (hidden_NH, weight_VH))
    exact_N = materialised(exact_NH, exact_VH, target_N)
    exact = torch.autograd.grad(_weighted(exact_N), (exact_NH, exact_VH))
    apart = [float((one - other).abs().max() / other.abs().max()) for one, other in zip(own, exact, strict=True)]
    with torch.no_grad():
        largest = float((exact_NH @ exact_VH.T).abs().max())
    found = float((own_N - exact_N).detach().abs().max()), max(apart), largest
    del own, exact
    tidy(device)
    return found
