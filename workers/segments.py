"""Which tokens of packed rows attend to which: each to its own row and to the prompt that the row shares with others.

Suffixes: `S` tokens of the packed row, `Q` queries, `K` keys; `B` blocks of `L` tokens; `H` heads, of which several
queries share a key's; `D` a head's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workers.families import Family
from workers.micro_batches import best_fit

BLOCK_TOKENS = 128
"""On a CPU as many tokens as this attend together under a mask: a call costs more than what the mask hides."""


class Segments:
    """Which tokens of the packed row see which, for every layer of one pass."""

    def __init__(self, families: Sequence[Family], device: torch.device) -> None:
        """`families` as they lie, in the order of `in_order`."""
        self._families, self._device = families, device
        self._longest = max(family.longest for family in families)
        self._masks: dict[tuple[_Stretch | None, int | None, torch.dtype, int], Tensor] = {}
        """By the call (None: that of the blocks) and what else `_mask` is asked for: layers share them."""

    @staticmethod
    def in_order(families: Sequence[Family]) -> list[Family]:
        """As they must lie: those that share their calls come first."""
        return sorted(families, key=lambda family: family.tokens > BLOCK_TOKENS)

    # Each way of attending lays out what it needs when it is first asked.

    @cached_property
    def _runs(self) -> _Runs:
        return _Runs.of(self._families, self._device)

    @cached_property
    def _tokens(self) -> _Tokens:
        return _Tokens.of(self._families, self._device)

    @cached_property
    def _small(self) -> list[Family]:
        return [family for family in self._families if family.tokens <= BLOCK_TOKENS]

    @cached_property
    def _small_tokens(self) -> int:
        return sum(family.tokens for family in self._small)

    @cached_property
    def _blocks(self) -> _Blocks | None:
        return _Blocks.of([family.tokens for family in self._small], self._device) if self._small else None

    @cached_property
    def _stretches(self) -> list[_Stretch]:
        return _stretches_of(self._families[len(self._small) :], start=self._small_tokens)

    def by_kernel(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None
    ) -> Tensor:
        """One call of PyTorch's kernel for everything."""
        runs = self._runs
        query_SHD, *others = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        if runs.keys_K is not None:
            others = [tensor.index_select(0, runs.keys_K) for tensor in others]
        out_SHD = varlen_attn(
            query_SHD,
            *others,
            runs.query_ends,
            runs.key_ends,
            runs.most_queries,
            runs.most_keys,
            scale=scale,
            # transformers counts the token itself.
            window_size=(window - 1 if window else -1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out_SHD[None]

    def by_calls(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None
    ) -> Tensor:
        """Small families side by side under masks, then the prompt and the responses of each large one."""
        lengths = [self._small_tokens, *(stretch.tokens for stretch in self._stretches)]
        (q_small, *qs), (k_small, *ks), (v_small, *vs) = (
            tensor.split(lengths, dim=2) for tensor in (query, key, value)
        )
        window = window if window and window < self._longest else None
        mask_of = partial(self._mask, window=window, dtype=query.dtype, times=query.shape[1] // key.shape[1])
        said = []
        if self._blocks is not None:
            blocks = (self._blocks.cut(tensor) for tensor in (q_small, k_small, v_small))
            said.append(self._blocks.joined(_attend(*blocks, mask_of(None), scale)))
        for stretch, q, k, v in zip(self._stretches, qs, ks, vs, strict=True):
            if stretch.prompt is not None:
                k, v = torch.cat([ks[stretch.prompt], k], dim=2), torch.cat([vs[stretch.prompt], v], dim=2)
            if stretch.is_long_row and window is None:
                said.append(sdpa_attention_forward(module, q, k, v, None, scaling=scale, is_causal=True)[0])
            else:
                said.append(_attend(q, k, v, mask_of(stretch), scale))
        return torch.cat(said, dim=1)

    def _mask(self, stretch: _Stretch | None, *, window: int | None, dtype: torch.dtype, times: int) -> Tensor:
        """What is added to the attention of a stretch, or of the blocks: nothing, or minus infinity.

        [..., Q, K], so many times below each other.
        """
        key = (stretch, window, dtype, times)
        if key not in self._masks:
            sees = self._seen_in_blocks(window) if stretch is None else self._seen_from(stretch, window)
            mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, -torch.inf)
            self._masks[key] = torch.cat([mask] * times, dim=-2)
        return self._masks[key]

    def _seen_in_blocks(self, window: int | None) -> Tensor:
        """[B, 1, L, L] bool."""
        index_BL = self._blocks.index_BL
        return (self._tokens.see(index_BL, index_BL, window) & self._blocks.real_BL[:, None])[:, None]

    def _seen_from(self, stretch: _Stretch, window: int | None) -> Tensor:
        """[Q, K] bool: of the stretch's prompt, where it has one, and of itself."""
        own_Q = key_K = stretch.places(self._device)
        if stretch.prompt is not None:
            key_K = torch.cat([self._stretches[stretch.prompt].places(self._device), own_Q])
        return self._tokens.see(own_Q, key_K, window)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """[B, heads, Q, D] -> [B, Q, heads, D]. `mask` [..., Q, K] as often as a key's head serves several of the queries'.

    Those heads come one behind the other, as further queries of it: keys, values and their gradients are there once.
    """
    shared = query.shape[1] // key.shape[1]
    query_BHQD = query.unflatten(1, (-1, shared)).flatten(2, 3)
    out_BHQD = nn.functional.scaled_dot_product_attention(query_BHQD, key, value, attn_mask=mask, scale=scale)
    return out_BHQD.unflatten(2, (shared, -1)).flatten(1, 2).transpose(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """Who each token of the packed row is: its family, its row in it (0: the prompt, every row's), its position."""

    family_S: Tensor
    row_S: Tensor
    position_S: Tensor

    @classmethod
    def of(cls, families: Sequence[Family], device: torch.device) -> _Tokens:
        runs = [
            (number, row, start, length)
            for number, family in enumerate(families)
            for row, start, length in [
                (0, 0, family.prompt_tokens),
                *((row, family.prompt_tokens, length) for row, length in enumerate(family.response_tokens, start=1)),
            ]
        ]
        family, row, start, length = (torch.tensor(column) for column in zip(*runs, strict=True))
        first = torch.tensor([0, *accumulate(length.tolist())][:-1])
        position_S = torch.arange(int(length.sum())) + (start - first).repeat_interleave(length)
        return cls(
            family_S=family.repeat_interleave(length).to(device),
            row_S=row.repeat_interleave(length).to(device),
            position_S=position_S.to(device),
        )

    def see(self, query_Q: Tensor, key_K: Tensor, window: int | None) -> Tensor:
        """[..., Q, K] bool, of token numbers [..., Q] and [..., K]."""

        def pair(of_S: Tensor) -> tuple[Tensor, Tensor]:
            return of_S[query_Q][..., :, None], of_S[key_K][..., None, :]

        (family_Q, family_K), (row_Q, row_K), (at_Q, at_K) = map(pair, (self.family_S, self.row_S, self.position_S))
        sees = (family_Q == family_K) & ((row_K == 0) | (row_K == row_Q)) & (at_K <= at_Q)
        # transformers counts the token itself.
        return sees & (at_Q - at_K < window) if window else sees


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blocks:
    """Small families as a batch of blocks of one length, several families in each."""

    index_BL: Tensor
    """Of tokens among those of the small families; where a block is shorter, its first one again."""
    real_BL: Tensor
    """False there."""
    place_S: Tensor
    """Where each token lies among all blocks'."""

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device) -> _Blocks:
        starts = [0, *accumulate(sizes)]
        blocks = [
            [token for number in block for token in range(starts[number], starts[number + 1])]
            for block in best_fit(sizes, BLOCK_TOKENS)
        ]
        longest = max(map(len, blocks))
        index_BL = torch.tensor([[*block, *block[:1] * (longest - len(block))] for block in blocks])
        real_BL = torch.tensor([[True] * len(block) + [False] * (longest - len(block)) for block in blocks])
        place_S = torch.empty(starts[-1], dtype=torch.long)
        place_S[index_BL[real_BL]] = torch.arange(index_BL.numel())[real_BL.flatten()]
        return cls(index_BL=index_BL.to(device), real_BL=real_BL.to(device), place_S=place_S.to(device))

    def cut(self, tensor_1HSD: Tensor) -> Tensor:
        """[blocks, heads, L, size]."""
        return tensor_1HSD[0].index_select(1, self.index_BL.flatten()).unflatten(1, self.index_BL.shape).transpose(0, 1)

    def joined(self, out_BLHD: Tensor) -> Tensor:
        """[1, S, heads, size]."""
        return out_BLHD.flatten(0, 1).index_select(0, self.place_S)[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stretch:
    """Neighbouring tokens of a large family that attend in one call: its prompt, or some of its responses."""

    start: int
    tokens: int
    prompt: int | None
    """The number of the stretch that its rows begin with; None where they begin here."""

    @property
    def is_long_row(self) -> bool:
        """Whether it is one row alone whose mask, as large as its square, is left to the kernel."""
        return self.prompt is None and self.tokens > BLOCK_TOKENS

    def places(self, device: torch.device) -> Tensor:
        """Of its tokens in the packed row."""
        return torch.arange(self.start, self.start + self.tokens, device=device)


def _stretches_of(families: Sequence[Family], *, start: int) -> list[_Stretch]:
    stretches: list[_Stretch] = []

    def add(tokens: int, *, prompt: int | None) -> None:
        end = stretches[-1].start + stretches[-1].tokens if stretches else start
        stretches.append(_Stretch(start=end, tokens=tokens, prompt=prompt))

    for family in families:
        if len(family.rows) == 1:
            add(family.tokens, prompt=None)
            continue
        add(family.prompt_tokens, prompt=None)
        prompt = len(stretches) - 1
        together: list[int] = []
        for tokens in family.response_tokens:
            if together and sum(together) + tokens > BLOCK_TOKENS:
                add(sum(together), prompt=prompt)
                together = []
            together.append(tokens)
        add(sum(together), prompt=prompt)
    return stretches


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runs:
    """The same for a kernel that attends by runs of queries, each to a run of keys that ends where it does."""

    query_ends: Tensor
    """int32, from 0."""
    key_ends: Tensor
    keys_K: Tensor | None
    """Token numbers, where a prompt is before several runs; None where keys lie as queries do."""
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, families: Sequence[Family], device: torch.device) -> _Runs:
        keys: list[range] = []
        queries: list[int] = []
        key_counts: list[int] = []
        at = 0
        for family in families:
            prompt = range(at, at + family.prompt_tokens)
            at = prompt.stop
            if len(family.rows) > 1:
                keys, queries, key_counts = [*keys, prompt], [*queries, len(prompt)], [*key_counts, len(prompt)]
            for tokens in family.response_tokens:
                own = range(at, at + tokens)
                at = own.stop
                keys += [prompt, own]
                key_counts.append(len(prompt) + tokens)
                queries.append(tokens if len(family.rows) > 1 else len(prompt) + tokens)
        shares = any(len(family.rows) > 1 for family in families)
        keys_K = torch.cat([torch.arange(run.start, run.stop) for run in keys]).to(device) if shares else None

        def ends(counts: Sequence[int]) -> Tensor:
            return torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=device)

        return cls(
            query_ends=ends(queries),
            key_ends=ends(key_counts),
            keys_K=keys_K,
            most_queries=max(queries),
            most_keys=max(key_counts),
        )
