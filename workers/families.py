"""Rows that share their prompt, as they lie in a packed row: the prompt once, then each response.

Suffixes: `B` rows of the batch, `S` tokens of the packed row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.records import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Siblings.

    Example (rows 2 and 3 of a batch: 3 and 5 tokens behind a prompt of 9):
        Family(rows=(2, 3), prompt_tokens=9, response_tokens=(3, 5))
    """

    rows: tuple[int, ...]
    prompt_tokens: int
    response_tokens: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + sum(self.response_tokens)

    @property
    def longest(self) -> int:
        """Of its rows, alone."""
        return self.prompt_tokens + max(self.response_tokens)


def families_of(batch: Batch) -> list[Family]:
    """Every row in one family, in the order of their first rows."""
    rows_by_prompt: defaultdict[int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(batch.prompts):
        rows_by_prompt[prompt].append(row)
    lengths = batch.lengths()
    return [
        Family(
            rows=tuple(rows),
            prompt_tokens=batch.prompt_lengths[rows[0]],
            response_tokens=tuple(lengths[row] - batch.prompt_lengths[row] for row in rows),
        )
        for rows in rows_by_prompt.values()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where each row of a batch lies, in flat positions."""

    prompt_B: Tensor
    """int64: of its prompt's first token."""
    response_B: Tensor
    """int64: of its response's first token."""


def places_of(families: Sequence[Family]) -> Places:
    """Of families that lie one behind the other."""
    count = sum(len(family.rows) for family in families)
    prompt_B, response_B, at = [0] * count, [0] * count, 0
    for family in families:
        start, at = at, at + family.prompt_tokens
        for row, tokens in zip(family.rows, family.response_tokens, strict=True):
            prompt_B[row], response_B[row] = start, at
            at += tokens
    return Places(prompt_B=torch.tensor(prompt_B), response_B=torch.tensor(response_B))


def one_behind_the_other(batch: Batch, families: Sequence[Family]) -> tuple[Tensor, Tensor]:
    """[S] token ids and [S] positions."""
    tokens, positions = [], []
    for family in families:
        prompt = family.prompt_tokens
        tokens.append(batch.context[family.rows[0]][:prompt])
        positions.append(torch.arange(prompt))
        for row, length in zip(family.rows, family.response_tokens, strict=True):
            tokens.append(batch.context[row][prompt:])
            positions.append(torch.arange(prompt, prompt + length))
    return torch.cat(tokens), torch.cat(positions)
