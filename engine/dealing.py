"""Which rank learns from which response, so that all of them are done at the same time.

Ranks wait for each other at every optimizer step: the step is as long as the longest rank's work. Siblings stay on one
rank as far as balance allows, where rows are packed: there their prompt is computed once.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from operator import attrgetter, itemgetter

from engine.sizes import ModelSizes

CLOSE_ENOUGH = 1.005
"""The largest load over the mean one at which the search ends."""
MOVES_PER_RANK = 16
PARTNERS = 64
"""Ranks, from the least loaded on, that the most loaded one tries to exchange with."""
MOST_TOGETHER = 32
"""Siblings that move together, unless it is all of them."""


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
Bundle = tuple[Place, ...]
"""Rows of one family that stay together."""


def deal(families: Sequence[Siblings], ranks: int) -> list[list[Place]]:
    """The rows of each rank, in order; none is without a row where there are as many rows as ranks.

    The most expensive families first, each to the rank with the least to do; then siblings of the rank with the most to
    do go to one with less, or change places with its, as long as that helps. Once from whole families on, and once from
    families that are divided first where one of them is more than a rank's share: the better of both.
    """
    share = sum(family.prompt + sum(family.rows) for family in families) / ranks
    whole, divided = (list(_bundles(families, share=room)) for room in (inf, share))
    tables = [_Table(families, ranks, bundles) for bundles in ([whole] if whole == divided else [whole, divided])]
    for table in tables:
        table.fill_empty_ranks()
        for _ in range(MOVES_PER_RANK * ranks):
            if not table.improve():
                break
    best = min(tables, key=lambda table: max(table.loads))
    return [sorted(rows) for rows in best.rows]


def _bundles(families: Sequence[Siblings], *, share: float) -> Iterator[Bundle]:
    """What is first dealt in one: as much of a family as a share has room for; rows, where they share no prompt."""
    for number, family in enumerate(families):
        places = [(number, row) for row in range(len(family.rows))]
        if not family.prompt:
            yield from ((place,) for place in places)
            continue
        places.sort(key=lambda place: -family.rows[place[1]])
        while places:
            room, bundle, rest = CLOSE_ENOUGH * share - family.prompt, list[Place](), list[Place]()
            for place in places:
                cost = family.rows[place[1]]
                if not bundle or cost <= room:
                    bundle.append(place)
                    room -= cost
                else:
                    rest.append(place)
            yield tuple(bundle)
            places = rest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """A bundle that a rank could give away."""

    bundle: Bundle
    cost: float
    """Of its rows, without their prompt."""
    spared: float
    """What the rank would no longer have to do: with the prompt, where no sibling stays."""


class _Table:
    """Who has what, while it is dealt."""

    def __init__(self, families: Sequence[Siblings], ranks: int, bundles: Iterable[Bundle]) -> None:
        self._families = families
        self.rows: list[list[Place]] = [[] for _ in range(ranks)]
        self.loads = [0.0] * ranks
        self._siblings: list[Counter[int]] = [Counter() for _ in range(ranks)]
        """How many rows of each family a rank has."""
        self._offers: list[tuple[list[_Offer], list[float]] | None] = [None] * ranks
        least = [(0.0, rank) for rank in range(ranks)]
        for bundle in sorted(bundles, key=lambda bundle: (-self._cost(bundle) - self._prompt(bundle), bundle)):
            _, rank = heapq.heappop(least)
            self._add(bundle, rank)
            heapq.heappush(least, (self.loads[rank], rank))

    def fill_empty_ranks(self) -> None:
        for rank in [rank for rank, rows in enumerate(self.rows) if not rows]:
            several = [own for own, rows in enumerate(self.rows) if len(rows) > 1]
            if several:
                richest = max(several, key=self.loads.__getitem__)
                self._move((self.rows[richest][-1],), richest, rank)

    def improve(self) -> bool:
        """A bundle from the most loaded rank to another, or two that change places, if the two ranks are better off."""
        by_load = sorted(range(len(self.loads)), key=self.loads.__getitem__)
        most = by_load.pop()
        is_even = self.loads[most] <= CLOSE_ENOUGH * sum(self.loads) / len(self.loads)
        if is_even or len(self.rows[most]) < 2:
            return False
        return any(self._even_out(most, other) for other in by_load[:PARTNERS])

    def _even_out(self, most: int, other: int) -> bool:
        load, given, taken = min(self._exchanges(most, other), key=itemgetter(0))
        if load >= self.loads[most] * (1.0 - 1e-9):
            return False
        self._move(given.bundle, most, other)
        if taken is not None:
            self._move(taken.bundle, other, most)
        return True

    def _exchanges(self, most: int, other: int) -> Iterator[tuple[float, _Offer, _Offer | None]]:
        """For each offer of the one nothing, and those of the other which come closest to evening both out; before them
        the larger load of the two ranks afterwards."""
        of_most, of_other = self.loads[most], self.loads[other]
        half, (others, spared) = (of_most - of_other) / 2, self._offered(other)
        for given in self._offered(most)[0]:
            without, with_given = of_most - given.spared, of_other + self._added(given.bundle, given.cost, other)
            yield max(without, with_given), given, None
            at = bisect_left(spared, given.spared - half)
            for taken in others[max(0, at - 1) : at + 2]:
                if taken.bundle[0][0] == given.bundle[0][0]:  # both have the prompt, before and after
                    difference = given.cost - taken.cost
                    yield max(of_most - difference, of_other + difference), given, taken
                else:
                    yield (
                        max(without + self._added(taken.bundle, taken.cost, most), with_given - taken.spared),
                        given,
                        taken,
                    )

    def _offered(self, rank: int) -> tuple[list[_Offer], list[float]]:
        """What the rank could give away, by what it would be spared: single rows, and of siblings with a prompt two,
        three and so on of those that cost least, or most."""
        offered = self._offers[rank]
        if offered is None:
            bundles: list[Bundle] = [(row,) for row in self.rows[rank]]
            for number, count in self._siblings[rank].items():
                if self._families[number].prompt:
                    own = sorted(
                        (row for row in self.rows[rank] if row[0] == number), key=lambda row: self._cost((row,))
                    )
                    sizes = range(2, min(count, MOST_TOGETHER + 1))
                    bundles += [tuple(some) for size in sizes for some in (own[:size], own[-size:])]
                    bundles += [tuple(own)] if count > 1 else []
            offers = sorted((self._offer(bundle, rank) for bundle in bundles), key=attrgetter("spared"))
            offered = self._offers[rank] = offers, [offer.spared for offer in offers]
        return offered

    def _offer(self, bundle: Bundle, rank: int) -> _Offer:
        cost, is_all = self._cost(bundle), self._siblings[rank][bundle[0][0]] == len(bundle)
        return _Offer(bundle=bundle, cost=cost, spared=cost + self._prompt(bundle) if is_all else cost)

    def _added(self, bundle: Bundle, cost: float, rank: int) -> float:
        """What a rank would have to do more for a bundle whose rows cost that."""
        return cost if self._siblings[rank][bundle[0][0]] else cost + self._prompt(bundle)

    def _cost(self, bundle: Bundle) -> float:
        """Of its rows, without their prompt."""
        return sum(self._families[number].rows[row] for number, row in bundle)

    def _prompt(self, bundle: Bundle) -> float:
        return self._families[bundle[0][0]].prompt

    def _move(self, bundle: Bundle, giver: int, taker: int) -> None:
        self.loads[giver] -= self._offer(bundle, giver).spared
        self._siblings[giver][bundle[0][0]] -= len(bundle)
        self.rows[giver] = [row for row in self.rows[giver] if row not in bundle]
        self._offers[giver] = None
        self._add(bundle, taker)

    def _add(self, bundle: Bundle, rank: int) -> None:
        self.loads[rank] += self._added(bundle, self._cost(bundle), rank)
        self._siblings[rank][bundle[0][0]] += len(bundle)
        self.rows[rank] += bundle
        self._offers[rank] = None
