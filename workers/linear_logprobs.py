"""Log-probs and entropies of tokens without the logits of all of them: a piece of the tokens at a time, twice.

The forward pass keeps a token's normaliser and entropy; the backward pass makes its logits again. Neither ever holds
more than `PIECE_BYTES` of them, whatever the batch and the vocabulary are.

Suffixes: `N` tokens, `V` vocabulary, `K` numbers that a term reads, `C` tokens of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PIECE_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Of one piece's logits in float32: on a CPU they stay near the cache, on a GPU they keep it busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A part of the logits: `read_NK @ weight_VK.T`. A plain head has one, a head with LoRA two."""

    read_NK: Tensor
    weight_VK: Tensor


def linear_logprobs(
    terms: Sequence[Term], bias_V: Tensor | None, target_N: Tensor, *, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """[N] log-probs of the targets and [N] entropies under softmax(sum of terms + bias, over the temperature).

    Logits are rounded to the terms' own precision, as a head's are, and everything after them is calculated in float32
    (float64 for terms in float64), gradients of weights are summed in it. Entropies have a gradient where it is asked
    for.
    """
    flat = [tensor for term in terms for tensor in (term.read_NK, term.weight_VK)]
    logprobs_N, entropy_N = _LinearLogprobs.apply(target_N, temperature, entropy_gradient, bias_V, *flat)
    return logprobs_N, entropy_N


class _LinearLogprobs(torch.autograd.Function):
    """With z = logits / temperature, p = softmax(z), H = -sum p log p:
    d log p_t / dz_j = [j = t] - p_j and dH / dz_j = -p_j (log p_j + H)."""

    @staticmethod
    def forward(
        ctx: Any,
        target_N: Tensor,
        temperature: float,
        entropy_gradient: bool,
        bias_V: Tensor | None,
        *flat: Tensor,
    ) -> tuple[Tensor, Tensor]:
        reads, weights = flat[::2], flat[1::2]
        exact = torch.promote_types(reads[0].dtype, torch.float32)
        logprobs_N = reads[0].new_empty(len(target_N), dtype=exact)
        normaliser_N, entropy_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        for piece in _pieces(len(target_N), weights[0], exact):
            logits_CV = _logits([read[piece] for read in reads], weights, bias_V, temperature)
            highest_C1 = logits_CV.amax(dim=-1, keepdim=True)
            target_C = logits_CV.gather(1, target_N[piece, None]).squeeze(1)
            logits_CV -= highest_C1
            shares_CV = logits_CV.exp()
            sum_C = shares_CV.sum(dim=-1)
            log_sum_C = sum_C.log()
            normaliser_N[piece] = highest_C1.squeeze(1) + log_sum_C
            logprobs_N[piece] = target_C - normaliser_N[piece]
            entropy_N[piece] = log_sum_C - torch.linalg.vecdot(shares_CV, logits_CV) / sum_C
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        ctx.save_for_backward(target_N, normaliser_N, entropy_N, bias_V, *flat)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        target_N, normaliser_N, entropy_N, bias_V, *flat = ctx.saved_tensors
        reads, weights = flat[::2], flat[1::2]
        exact, wanted = normaliser_N.dtype, ctx.needs_input_grad[4:]
        grads: list[Tensor | None] = [
            torch.zeros_like(tensor, dtype=exact) if asked and number % 2 else None
            for number, (tensor, asked) in enumerate(zip(flat, wanted, strict=True))
        ]
        for number in range(0, len(flat), 2):
            grads[number] = torch.empty_like(flat[number]) if wanted[number] else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=exact) if ctx.needs_input_grad[3] else None
        for piece in _pieces(len(target_N), weights[0], exact):
            own = [read[piece] for read in reads]
            grad_CV = _logits(own, weights, bias_V, ctx.temperature)
            grad_CV -= normaliser_N[piece, None]
            _to_gradient(
                grad_CV,
                target_N[piece],
                grad_logprobs_N[piece],
                grad_entropy_N[piece] if ctx.entropy_gradient else None,
                entropy_N[piece],
            )
            grad_CV /= ctx.temperature
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(dim=0)
            for term, (read_CK, weight_VK) in enumerate(zip(own, weights, strict=True)):
                rounded_CV = grad_CV.to(weight_VK.dtype)
                if grads[2 * term] is not None:
                    torch.mm(rounded_CV, weight_VK, out=grads[2 * term][piece])
                if grads[2 * term + 1] is not None:
                    _add_product(grads[2 * term + 1], rounded_CV.T, read_CK)
        given = [None if grad is None else grad.to(tensor.dtype) for grad, tensor in zip(grads, flat, strict=True)]
        return None, None, None, None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype), *given


def _pieces(count: int, weight_VK: Tensor, exact: torch.dtype) -> Iterator[slice]:
    """Runs of tokens whose logits have room together."""
    size = max(1, PIECE_BYTES[weight_VK.device.type] // (len(weight_VK) * exact.itemsize))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _logits(reads: Sequence[Tensor], weights: Sequence[Tensor], bias_V: Tensor | None, temperature: float) -> Tensor:
    """[C, V] over the temperature, in at least float32."""
    first_CV = torch.nn.functional.linear(reads[0], weights[0], bias_V)
    for read_CK, weight_VK in zip(reads[1:], weights[1:], strict=True):
        first_CV += read_CK @ weight_VK.T
    logits_CV = first_CV.to(torch.promote_types(first_CV.dtype, torch.float32))
    return logits_CV.div_(temperature) if temperature != 1.0 else logits_CV


def _to_gradient(
    logprobs_CV: Tensor, target_C: Tensor, of_logprob_C: Tensor, of_entropy_C: Tensor | None, entropy_C: Tensor
) -> None:
    """Log-probs of all tokens, in place, to the gradient of their logits."""
    if of_entropy_C is None:
        logprobs_CV.exp_().mul_(-of_logprob_C[:, None])
    else:
        shares_CV = logprobs_CV.exp()
        # -p (g + h (log p + H)), with g of the log-prob and h of the entropy.
        logprobs_CV.add_(entropy_C[:, None]).mul_(of_entropy_C[:, None]).add_(of_logprob_C[:, None])
        logprobs_CV.mul_(shares_CV).neg_()
    logprobs_CV.scatter_add_(1, target_C[:, None], of_logprob_C[:, None])


def _add_product(sum_VK: Tensor, left_VC: Tensor, right_CK: Tensor) -> None:
    """Products of halves are summed in float32: many small ones would be lost in a half."""
    if left_VC.dtype == sum_VK.dtype:
        sum_VK.addmm_(left_VC, right_CK)
    else:
        sum_VK += left_VC @ right_CK
