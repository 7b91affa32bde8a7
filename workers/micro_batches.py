"""Rows to micro-batches of a token budget: below each other and padded, or packed, a prompt that several share once."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workers.records import Batch

Units = Sequence[tuple[int, ...]]
"""Row numbers, in groups that a micro-batch must not split."""


def one_by_one(rows: Iterable[int]) -> Units:
    """Every row is a unit of its own."""
    return [(row,) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSize:
    """What a row takes.

    Example (two siblings of 3 and 5 tokens behind their prompt of 9):
        RowSize(prompt=7, prompt_tokens=9, response_tokens=3), RowSize(prompt=7, prompt_tokens=9, response_tokens=5)
    """

    prompt: int
    """Rows of one number have the same prompt."""
    prompt_tokens: int
    response_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens


def micro_batches(batch: Batch, units: Units, *, tokens_per_micro_batch: int, packing: bool) -> list[tuple[int, ...]]:
    """Row numbers by micro-batch; the largest units come first."""
    if packing:
        sizes = [
            RowSize(prompt=prompt, prompt_tokens=length, response_tokens=len(tokens) - length)
            for prompt, length, tokens in zip(batch.prompts, batch.prompt_lengths, batch.context, strict=True)
        ]
        pieces = cut_packed([[sizes[row] for row in unit] for unit in units], tokens_per_micro_batch)
    else:
        lengths = batch.lengths()
        pieces = cut_padded([[lengths[row] for row in unit] for unit in units], tokens_per_micro_batch)
    return [tuple(row for number in piece for row in units[number]) for piece in pieces]


def cut_padded(units: Sequence[Sequence[int]], tokens_per_micro_batch: int) -> tuple[tuple[int, ...], ...]:
    """Unit numbers by micro-batch, of units that are given by the lengths of their rows.

    A micro-batch costs rows x longest row. A unit that is larger than the budget gets one of its own. Longest first, so
    that rows of about the same length share one.

    >>> cut_padded([(3,), (9,), (4,), (2,)], 9)
    ((1,), (2, 0), (3,))
    """
    cuts: list[list[int]] = []
    longest = rows = 0
    for unit in sorted(range(len(units)), key=lambda unit: (-max(units[unit]), unit)):
        if cuts and (rows + len(units[unit])) * longest <= tokens_per_micro_batch:
            cuts[-1].append(unit)
            rows += len(units[unit])
        else:
            cuts.append([unit])
            longest, rows = max(units[unit]), len(units[unit])
    return tuple(tuple(micro_batch) for micro_batch in cuts)


def cut_packed(units: Sequence[Sequence[RowSize]], tokens_per_micro_batch: int) -> tuple[tuple[int, ...], ...]:
    """Unit numbers by micro-batch, of units that are given by their rows.

    A micro-batch costs the tokens of its responses and, once each, of its prompts. A unit that is larger than the
    budget gets one of its own.

    >>> siblings = [[RowSize(prompt=0, prompt_tokens=4, response_tokens=tokens)] for tokens in (2, 3)]
    >>> cut_packed(siblings, 9), cut_packed(siblings, 8)
    (((1, 0),), ((1,), (0,)))
    """
    families = _families(units, tokens_per_micro_batch)
    sizes = [packed_tokens(row for number in family for row in units[number]) for family in families]
    pieces = best_fit(sizes, tokens_per_micro_batch)
    return tuple(tuple(number for family in piece for number in families[family]) for piece in pieces)


def packed_tokens(rows: Iterable[RowSize]) -> int:
    """What is computed for them: each response, and each prompt once.

    >>> sibling = RowSize(prompt=0, prompt_tokens=9, response_tokens=3)
    >>> packed_tokens([sibling, sibling])
    15
    """
    prompts: dict[int, int] = {}
    responses = 0
    for row in rows:
        prompts[row.prompt] = row.prompt_tokens
        responses += row.response_tokens
    return sum(prompts.values()) + responses


def _families(units: Sequence[Sequence[RowSize]], budget: int) -> list[list[int]]:
    """Unit numbers by what they share, as many together as the budget has room for."""
    by_prompts: defaultdict[frozenset[int], list[int]] = defaultdict(list)
    for number, unit in enumerate(units):
        by_prompts[frozenset(row.prompt for row in unit)].append(number)
    families: list[list[int]] = []
    for numbers in by_prompts.values():
        room = -1
        for number in sorted(numbers, key=lambda number: (-packed_tokens(units[number]), number)):
            tokens = sum(row.response_tokens for row in units[number])
            if tokens > room:
                families.append([])
                room = budget - (packed_tokens(units[number]) - tokens)
            families[-1].append(number)
            room -= tokens
    return families


def best_fit(sizes: Sequence[int], budget: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of items by bin, from the largest on, each where it leaves the least room (best-fit decreasing)."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of the budget, and in which bin; sorted
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        tightest = bisect_left(room, (sizes[item], 0))
        if tightest < len(room):
            left, number = room.pop(tightest)
            bins[number].append(item)
        else:
            left, number = budget, len(bins)
            bins.append([item])
        insort(room, (left - sizes[item], number))
    return tuple(map(tuple, bins))
