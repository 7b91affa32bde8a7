"""Packed rows: they lie one behind the other in one long row, none of them sees another, and a prompt that several of
them begin with lies there once.

Three things make that true: positions go on from the prompt in each response; attention never leaves the family of rows
that share a prompt; and in it a token sees the prompt and its own row alone. The attention is a function of our own
behind transformers' `AttentionInterface`, to which `Segments` travels through the model's own keywords.

Suffixes: `S` tokens of the long row, `Q` queries, `K` keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workers.families import Family, one_behind_the_other
from workers.micro_batches import best_fit
from workers.records import Batch

SEGMENTS = "heliostat_segments"
"""Our attention's name among those of transformers."""
ALIKE_EVERYWHERE = {"full_attention", "sliding_attention"}
"""Kinds of layers whose only way from one token to another is the attention function."""
NOT_READ = ("softcap", "s_aux", "position_bias")
"""What some architectures hand to their attention function and ours would pass over."""
BLOCK_TOKENS = 128
"""On a CPU as many tokens as this attend together under a mask: a call costs more than what the mask hides."""


class CannotPack(ValueError):
    """The architecture has another way than attention for one segment to reach the next."""


def attend_by_segment(model: nn.Module) -> None:
    """Make a transformers model, or what is wrapped around one, read packed rows.

    Raises CannotPack, by name, where that would not be exact.
    """
    model = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    reason = _why_not(model)
    if reason:
        raise CannotPack(
            f"train.packing is true, and {type(model).__name__} ({model.config.model_type}) {reason}. "
            "Set train.packing=false."
        )
    model.set_attn_implementation(SEGMENTS)


def reads_segments(model: nn.Module) -> bool:
    """Whether `attend_by_segment` was here: then rows are packed for it."""
    return model.config._attn_implementation == SEGMENTS


def _why_not(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    body = model.base_model
    if not (body._supports_attention_backend and body._can_set_attn_implementation()):
        return "does not take its attention from transformers' AttentionInterface"
    if body._is_stateful or not kinds <= ALIKE_EVERYWHERE:
        others = f" ({', '.join(sorted(kinds - ALIKE_EVERYWHERE))})" if kinds - ALIKE_EVERYWHERE else ""
        return f"has layers that carry more from token to token than attention does{others}"
    if getattr(config, "sliding_window", None) and not body._supports_flash_attn:
        return "does not tell its attention how far it may look back"
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return "does not take the positions of its tokens"
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}):
        return "has positions of several dimensions"
    return None


def packed(batch: Batch, families: Sequence[Family], device: torch.device) -> Mapping[str, Tensor | Segments]:
    """What a model's body reads of a batch, as one row of all its tokens. `families` in the order of `in_order`."""
    tokens_S, positions_S = one_behind_the_other(batch, families)
    return {
        "input_ids": tokens_S[None].to(device),
        "position_ids": positions_S[None].to(device),
        "segments": Segments(families, device),
    }


def segment_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: object
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself and to its prompt. [1, heads, S, size] -> [1, S, heads, size]."""
    unread = [name for name in NOT_READ if how.get(name) is not None]
    if unread:
        raise CannotPack(f"{type(module).__name__} hands its attention {', '.join(unread)}: set train.packing=false")
    segments, scale, window = how["segments"], how.get("scaling"), how.get("sliding_window")
    if _has_kernel(query, key, value):
        return segments.by_kernel(query, key, value, scale=scale, window=window), None
    return segments.by_calls(module, query, key, value, scale=scale, window=window), None


def _has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch's own variable-length kernel takes these: half precision, on a GPU that has it."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


class Segments:
    """Which tokens of the packed row see which, for every layer of one pass."""

    def __init__(self, families: Sequence[Family], device: torch.device) -> None:
        """`families` as they lie, in the order of `in_order`."""
        self._tokens = _Tokens.of(families, device)
        self._longest = max(family.longest for family in families)
        small = [family for family in families if family.tokens <= BLOCK_TOKENS]
        self._small_tokens = sum(family.tokens for family in small)
        self._blocks = _Blocks.of([family.tokens for family in small], device) if small else None
        self._stretches = _stretches_of(families[len(small) :], start=self._small_tokens)
        self._runs = _Runs.of(families, device) if device.type == "cuda" else None
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor] = {}
        """By the number of the call, window and type: layers share them."""

    @staticmethod
    def in_order(families: Sequence[Family]) -> list[Family]:
        """As they must lie: those that share their calls come first."""
        return sorted(families, key=lambda family: family.tokens > BLOCK_TOKENS)

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
        said = []
        if self._blocks is not None:
            blocks = (self._blocks.cut(tensor) for tensor in (q_small, k_small, v_small))
            mask = self._mask(-1, window, query.dtype)
            out = sdpa_attention_forward(module, *blocks, mask, scaling=scale, is_causal=True)[0]
            said.append(self._blocks.joined(out))
        for number, (stretch, q, k, v) in enumerate(zip(self._stretches, qs, ks, vs, strict=True)):
            if stretch.prompt is not None:
                k, v = torch.cat([ks[stretch.prompt], k], dim=2), torch.cat([vs[stretch.prompt], v], dim=2)
            is_causal = stretch.is_one_row and stretch.prompt is None and window is None
            mask = None if is_causal else self._mask(number, window, query.dtype)
            said.append(sdpa_attention_forward(module, q, k, v, mask, scaling=scale, is_causal=True)[0])
        return torch.cat(said, dim=1)

    def _mask(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to the attention of one call, -1 for that of the blocks: nothing, or minus infinity."""
        key = (number, window, dtype)
        if key not in self._masks:
            if number < 0:
                index_BL, real_BL = self._blocks.index_BL, self._blocks.real_BL
                sees = (self._tokens.see(index_BL, index_BL, window) & real_BL[:, None])[:, None]
            else:
                stretch = self._stretches[number]
                own = torch.arange(stretch.start, stretch.start + stretch.tokens, device=self._tokens.device)
                seen = own
                if stretch.prompt is not None:
                    prompt = self._stretches[stretch.prompt]
                    seen = torch.cat([torch.arange(prompt.start, prompt.start + prompt.tokens, device=own.device), own])
                sees = self._tokens.see(own, seen, window)
            self._masks[key] = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, -torch.inf)
        return self._masks[key]


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

    @property
    def device(self) -> torch.device:
        return self.family_S.device

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
    is_one_row: bool


def _stretches_of(families: Sequence[Family], *, start: int) -> list[_Stretch]:
    stretches: list[_Stretch] = []

    def add(tokens: int, *, prompt: int | None, is_one_row: bool) -> None:
        end = stretches[-1].start + stretches[-1].tokens if stretches else start
        stretches.append(_Stretch(start=end, tokens=tokens, prompt=prompt, is_one_row=is_one_row))

    for family in families:
        if len(family.rows) == 1:
            add(family.tokens, prompt=None, is_one_row=True)
            continue
        add(family.prompt_tokens, prompt=None, is_one_row=True)
        prompt = len(stretches) - 1
        together: list[int] = []
        for tokens in family.response_tokens:
            if together and sum(together) + tokens > BLOCK_TOKENS:
                add(sum(together), prompt=prompt, is_one_row=len(together) == 1)
                together = []
            together.append(tokens)
        add(sum(together), prompt=prompt, is_one_row=len(together) == 1)
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


AttentionInterface.register(SEGMENTS, segment_attention)
