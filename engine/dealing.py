"""Which rank learns from which response, so that all of them are done at the same time.

Ranks wait for each other at every optimizer step: the step is as long as the longest rank's work. Siblings stay on one
rank as far as balance allows, where rows are packed: there their prompt is computed once.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.sizes import ModelSizes

CLOSE_ENOUGH = 1.005
"""The largest load over the mean one at which the search ends."""
MOVES_PER_RANK = 16
PARTNERS = 8
"""Ranks, from the least loaded on, that the most loaded one tries to exchange with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkModel:
    """What a forward and backward pass costs, in units of one token's way through the layers.

    A token multiplies with every matrix of a layer, a pair of tokens that see each other with as many numbers as
    attention has, and a response's token with the head, which is made twice (`workers/linear_logprobs.py`).
    """

    pair: float
    response_token: float
    """In addition to what every token costs."""
    shares_prompts: bool

    @classmethod
    def of(cls, sizes: ModelSizes, *, shares_prompts: bool) -> WorkModel:
        """Of a model whose sizes nobody told every token costs the same."""
        if not sizes.are_known:
            return cls(pair=0.0, response_token=0.0, shares_prompts=shares_prompts)
        attention = sizes.heads * sizes.head_dimension
        matrices = 2 * attention + 2 * sizes.key_value_heads * sizes.head_dimension + 3 * sizes.intermediate
        return cls(
            pair=2 * attention / (sizes.hidden * matrices),
            response_token=4 / 3 * sizes.vocabulary / (sizes.layers * matrices),
            shares_prompts=shares_prompts,
        )

    def prompt(self, tokens: int) -> float:
        """Of a prompt that is computed once for its siblings; 0 where each has its own."""
        return tokens + self.pair * tokens * tokens / 2 if self.shares_prompts else 0.0

    def row(self, prompt_tokens: int, response_tokens: int) -> float:
        """Of what no sibling shares."""
        own = response_tokens if self.shares_prompts else prompt_tokens + response_tokens
        tokens = prompt_tokens + response_tokens
        pairs = tokens * tokens - (prompt_tokens * prompt_tokens if self.shares_prompts else 0)
        return own + self.pair * pairs / 2 + self.response_token * response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """The rows of one prompt, by what each costs."""

    prompt: float
    """Of what is computed once on every rank that has any of them."""
    rows: tuple[float, ...]


Place = tuple[int, int]
"""A row: the number of its family, and its own in it."""


def deal(families: Sequence[Siblings], ranks: int) -> list[list[Place]]:
    """The rows of each rank, in order; none is without a row where there are as many rows as ranks.

    Whole families first (where there is nothing to share, rows), the most expensive to the rank with the least to do;
    then rows of the rank with the most to do go to one with less, or change places with its, as long as that helps.
    """
    table = _Table(families, ranks)
    for load, rows in sorted(_dealt_whole(families), key=lambda item: (-item[0], item[1])):
        table.give(rows, load)
    table.fill_empty_ranks()
    for _ in range(MOVES_PER_RANK * ranks):
        if not table.improve():
            break
    return [sorted(rows) for rows in table.rows]


def _dealt_whole(families: Sequence[Siblings]) -> Iterator[tuple[float, list[Place]]]:
    """What is first dealt in one, and what it costs."""
    for number, family in enumerate(families):
        rows = [(number, row) for row in range(len(family.rows))]
        if family.prompt and rows:
            yield family.prompt + sum(family.rows), rows
        else:
            yield from ((family.rows[row], [(number, row)]) for _, row in rows)


class _Table:
    """Who has what, while it is dealt."""

    def __init__(self, families: Sequence[Siblings], ranks: int) -> None:
        self._families = families
        self.rows: list[list[Place]] = [[] for _ in range(ranks)]
        self._loads = [0.0] * ranks
        self._siblings: list[Counter[int]] = [Counter() for _ in range(ranks)]
        """How many rows of each family a rank has."""
        self._least = [(0.0, rank) for rank in range(ranks)]

    def give(self, rows: list[Place], load: float) -> None:
        """To the rank with the least to do."""
        own, rank = heapq.heappop(self._least)
        self.rows[rank] += rows
        self._siblings[rank][rows[0][0]] += len(rows)
        self._loads[rank] = own + load
        heapq.heappush(self._least, (self._loads[rank], rank))

    def fill_empty_ranks(self) -> None:
        for rank in [rank for rank, rows in enumerate(self.rows) if not rows]:
            several = [own for own, rows in enumerate(self.rows) if len(rows) > 1]
            if several:
                richest = max(several, key=self._loads.__getitem__)
                self._move(self.rows[richest][-1], richest, rank)

    def improve(self) -> bool:
        """One row from the most loaded rank to another, or two that change places, if the two ranks are better off."""
        by_load = sorted(range(len(self._loads)), key=self._loads.__getitem__)
        most = by_load.pop()
        is_even = self._loads[most] <= CLOSE_ENOUGH * sum(self._loads) / len(self._loads)
        if is_even or len(self.rows[most]) < 2:
            return False
        return any(self._even_out(most, other) for other in by_load[:PARTNERS])

    def _even_out(self, most: int, other: int) -> bool:
        moves: list[tuple[Place, Place | None]] = [(row, None) for row in self.rows[most]]
        exchanges = [*moves, *self._pairs(most, other)]
        best = min(exchanges, key=lambda exchange: max(self._loads_after(*exchange, most, other)))
        if max(self._loads_after(*best, most, other)) >= self._loads[most] * (1.0 - 1e-9):
            return False
        given, taken = best
        self._move(given, most, other)
        if taken is not None:
            self._move(taken, other, most)
        return True

    def _pairs(self, most: int, other: int) -> list[tuple[Place, Place]]:
        """For each row of the one that of the other which comes closest to evening both out."""
        others = sorted(self.rows[other], key=self._cost)
        costs = [self._cost(row) for row in others]
        half = (self._loads[most] - self._loads[other]) / 2
        pairs = []
        for row in self.rows[most]:
            at = bisect_left(costs, self._cost(row) - half)
            pairs += [(row, back) for back in others[max(0, at - 1) : at + 1]]
        return pairs

    def _cost(self, row: Place) -> float:
        return self._families[row[0]].rows[row[1]]

    def _loads_after(self, given: Place, taken: Place | None, most: int, other: int) -> tuple[float, float]:
        if taken is not None and taken[0] == given[0]:
            difference = self._cost(given) - self._cost(taken)
            return self._loads[most] - difference, self._loads[other] + difference
        of_most = self._loads[most] - self._weight(given, most, alone=1)
        of_other = self._loads[other] + self._weight(given, other, alone=0)
        if taken is not None:
            of_most += self._weight(taken, most, alone=0)
            of_other -= self._weight(taken, other, alone=1)
        return of_most, of_other

    def _weight(self, row: Place, rank: int, *, alone: int) -> float:
        """What a row adds to a rank or takes from it: with its prompt, where it has `alone` rows of the family."""
        family = self._families[row[0]]
        return family.rows[row[1]] + (family.prompt if self._siblings[rank][row[0]] == alone else 0.0)

    def _move(self, row: Place, giver: int, taker: int) -> None:
        self._loads[giver] -= self._weight(row, giver, alone=1)
        self._loads[taker] += self._weight(row, taker, alone=0)
        self._siblings[giver][row[0]] -= 1
        self._siblings[taker][row[0]] += 1
        self.rows[giver].remove(row)
        self.rows[taker].append(row)
