"""Log-probs and entropies of tokens without their logits: a tile of tokens x vocabulary at a time, twice.

The forward pass keeps a token's normaliser and entropy, summed up from tile to tile as a softmax can be (1805.02867);
the backward pass makes each tile again. A tile's room is used again by the next, so neither pass ever holds more than
two of them (and a rounded one), whatever the batch and the vocabulary are.

Suffixes: `N` tokens, `V` vocabulary, `K` numbers that a term reads, `C` tokens of a tile, `W` words of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSize:
    """Of the logits that are held together."""

    tokens: int
    words: int


TILE = {"cpu": TileSize(tokens=1024, words=1024), "cuda": TileSize(tokens=4096, words=8192)}
"""On a CPU the two tiles stay in the cache between one operation and the next; on a GPU they keep it busy."""


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
    (float64 for terms in float64), gradients are summed in it. Entropies have a gradient where it is asked for.
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
        tiles = _Tiles(flat[::2], flat[1::2], bias_V, temperature)
        logprobs_N = target_N.new_empty(len(target_N), dtype=tiles.exact)
        normaliser_N, entropy_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        for tokens in tiles.tokens():
            seen = _Softmax(target_N[tokens], tiles.exact)
            for words in tiles.words():
                seen.add(tiles.logits(tokens, words), words, spare_CW=tiles.spare(tokens, words))
            normaliser_N[tokens], entropy_N[tokens] = seen.normaliser(), seen.entropy()
            logprobs_N[tokens] = seen.target_C - normaliser_N[tokens]
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        ctx.save_for_backward(target_N, normaliser_N, entropy_N, bias_V, *flat)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        target_N, normaliser_N, entropy_N, bias_V, *flat = ctx.saved_tensors
        reads, weights = flat[::2], flat[1::2]
        tiles = _Tiles(reads, weights, bias_V, ctx.temperature)
        of_bias, *of_terms = ctx.needs_input_grad[3:]
        pull_N, stir_N = grad_logprobs_N / ctx.temperature, grad_entropy_N / ctx.temperature
        grad_reads = [_zeros(read, tiles.exact, asked) for read, asked in zip(reads, of_terms[::2], strict=True)]
        grad_weights = [
            torch.empty_like(w) if asked else None for w, asked in zip(weights, of_terms[1::2], strict=True)
        ]
        grad_bias_V = torch.empty_like(bias_V) if of_bias else None
        for words in tiles.words():
            # The sums of these words alone: rounded once, when all tokens have been seen.
            sums = [None if grad is None else _zeros(grad[words], tiles.exact, True) for grad in grad_weights]
            bias_sum_W = _zeros(bias_V[words], tiles.exact, True) if of_bias else None
            for tokens in tiles.tokens():
                grad_CW = tiles.logits(tokens, words)
                grad_CW -= normaliser_N[tokens, None]
                if ctx.entropy_gradient:
                    # -p (g + h (log p + H)), with g of the log-prob and h of the entropy.
                    share_CW = torch.exp(grad_CW, out=tiles.spare(tokens, words))
                    grad_CW.add_(entropy_N[tokens, None]).mul_(stir_N[tokens, None]).add_(pull_N[tokens, None])
                    grad_CW.mul_(share_CW).neg_()
                else:
                    grad_CW.exp_().mul_(-pull_N[tokens, None])
                place_C, inside_C = _among(target_N[tokens], words)
                grad_CW.scatter_add_(1, place_C[:, None], torch.where(inside_C, pull_N[tokens], 0.0)[:, None])
                if bias_sum_W is not None:
                    bias_sum_W += grad_CW.sum(dim=0)
                rounded_CW = tiles.rounded(grad_CW)
                for read, weight, grad_read, sum_WK in zip(reads, weights, grad_reads, sums, strict=True):
                    if grad_read is not None:
                        _add_product(grad_read[tokens], rounded_CW, weight[words])
                    if sum_WK is not None:
                        _add_product(sum_WK, rounded_CW.T, read[tokens])
            for grad, sum_WK in zip((grad_bias_V, *grad_weights), (bias_sum_W, *sums), strict=True):
                if grad is not None:
                    grad[words] = sum_WK
        rounded = [None if grad is None else grad.to(read.dtype) for grad, read in zip(grad_reads, reads, strict=True)]
        given = [grad for pair in zip(rounded, grad_weights, strict=True) for grad in pair]
        return None, None, None, grad_bias_V, *given


class _Tiles:
    """The logits of a batch, tile by tile in one and the same room: the next tile takes the place of the last."""

    def __init__(
        self, reads: Sequence[Tensor], weights: Sequence[Tensor], bias_V: Tensor | None, temperature: float
    ) -> None:
        self._reads, self._weights, self._bias_V, self._temperature = reads, weights, bias_V, temperature
        self._tokens, self._words = len(reads[0]), len(weights[0])
        self._size = TILE[weights[0].device.type]
        self.exact = torch.promote_types(weights[0].dtype, torch.float32)
        """The precision of everything but the products."""
        numbers = min(self._size.tokens, self._tokens) * min(self._size.words, self._words)
        self._logits, self._spare = (weights[0].new_empty(numbers, dtype=self.exact) for _ in range(2))
        self._rounded = self._logits if weights[0].dtype == self.exact else weights[0].new_empty(numbers)

    def tokens(self) -> Iterator[slice]:
        return _runs(self._tokens, self._size.tokens)

    def words(self) -> Iterator[slice]:
        return _runs(self._words, self._size.words)

    def logits(self, tokens: slice, words: slice) -> Tensor:
        """[C, W] over the temperature."""
        product_CW = _view(self._rounded, tokens, words)
        first, *others = zip(self._reads, self._weights, strict=True)
        if self._bias_V is None:
            torch.mm(first[0][tokens], first[1][words].T, out=product_CW)
        else:
            torch.addmm(self._bias_V[words], first[0][tokens], first[1][words].T, out=product_CW)
        for read_NK, weight_VK in others:
            product_CW.addmm_(read_NK[tokens], weight_VK[words].T)
        logits_CW = _view(self._logits, tokens, words)
        if self._rounded is not self._logits:
            logits_CW.copy_(product_CW)
        return logits_CW.div_(self._temperature) if self._temperature != 1.0 else logits_CW

    def spare(self, tokens: slice, words: slice) -> Tensor:
        """[C, W] of room."""
        return _view(self._spare, tokens, words)

    def rounded(self, tile_CW: Tensor) -> Tensor:
        """`tile_CW` in the precision of the products; `logits` is its room's next use."""
        if self._rounded is self._logits:
            return tile_CW
        return self._rounded[: tile_CW.numel()].view_as(tile_CW).copy_(tile_CW)


class _Softmax:
    """What is known of the distribution of some tokens after the words that were seen.

    Sums are relative to the highest logit so far; a higher one makes all of them smaller.
    """

    def __init__(self, target_C: Tensor, exact: torch.dtype) -> None:
        self._word_C = target_C
        self._highest_C = torch.full_like(target_C, torch.finfo(exact).min, dtype=exact)
        self._sum_C = torch.zeros_like(self._highest_C)
        self._moment_C = torch.zeros_like(self._highest_C)
        """Of exp(z - highest) (z - highest)."""
        self.target_C = torch.zeros_like(self._highest_C)
        """Logits of the targets."""

    def add(self, logits_CW: Tensor, words: slice, *, spare_CW: Tensor) -> None:
        """Overwrites both."""
        place_C, inside_C = _among(self._word_C, words)
        self.target_C = torch.where(inside_C, logits_CW.gather(1, place_C[:, None]).squeeze(1), self.target_C)
        highest_C = torch.maximum(self._highest_C, logits_CW.amax(dim=-1))
        fallen_C = self._highest_C - highest_C
        logits_CW -= highest_C[:, None]
        weight_CW = torch.exp(logits_CW, out=spare_CW)
        kept_C = fallen_C.exp()
        self._moment_C = (self._moment_C + self._sum_C * fallen_C) * kept_C + torch.linalg.vecdot(weight_CW, logits_CW)
        self._sum_C = self._sum_C * kept_C + weight_CW.sum(dim=-1)
        self._highest_C = highest_C

    def normaliser(self) -> Tensor:
        """[C]: what all logits' exponentials sum to, as a logarithm."""
        return self._highest_C + self._sum_C.log()

    def entropy(self) -> Tensor:
        return self._sum_C.log() - self._moment_C / self._sum_C


def _runs(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _view(room: Tensor, tokens: slice, words: slice) -> Tensor:
    shape = (tokens.stop - tokens.start, words.stop - words.start)
    return room[: shape[0] * shape[1]].view(shape)


def _among(word_C: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Where among these words each one is, and whether it is."""
    place_C = word_C - words.start
    inside_C = (place_C >= 0) & (word_C < words.stop)
    return torch.where(inside_C, place_C, 0), inside_C


def _zeros(like: Tensor, dtype: torch.dtype, asked: bool) -> Tensor | None:
    return torch.zeros_like(like, dtype=dtype) if asked else None


def _add_product(sum_AB: Tensor, left_AC: Tensor, right_CB: Tensor) -> None:
    """Products of halves are summed in float32: many small ones would be lost in a half."""
    if left_AC.dtype == sum_AB.dtype:
        sum_AB.addmm_(left_AC, right_CB)
    else:
        sum_AB += left_AC @ right_CB
