"""Several sources as one: how many rows of each, in which order; the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TypeVar

T = TypeVar("T")
Source = Callable[[], Iterator[T]]
"""Begins again each time that it is called."""


class Mix(Enum):
    """How several sources become one."""

    CONCAT = "concat"
    """One after another."""
    INTERLEAVE_UNDER = "interleave_under"
    """In turns, or by weight, until the first runs out: no row twice."""
    INTERLEAVE_OVER = "interleave_over"
    """In turns, or by weight, until the last runs out; those that ran out before begin again."""


class HeldOutFrom(Enum):
    """Which rows are never trained on."""

    LAST = "last"
    """Each source's last ones."""
    RANDOM = "random"
    """Chosen by seed."""


def mixed(sources: Sequence[Source[T]], mix: Mix, weights: Sequence[float], seed: int) -> Iterator[T]:
    """The rows of all sources; without weights, interleaved sources take turns."""
    if mix is Mix.CONCAT or len(sources) == 1:
        for source in sources:
            yield from source()
        return
    running = [source() for source in sources]
    ahead = [next(rows, None) for rows in running]
    is_out = [row is None for row in ahead]
    for number in _choices(len(sources), weights, seed):
        if all(is_out):
            return
        if ahead[number] is None:
            if mix is Mix.INTERLEAVE_UNDER:
                return
            running[number] = sources[number]()
            ahead[number] = next(running[number], None)
        row = ahead[number]
        if row is not None:  # an empty source has nothing to repeat
            yield row
            ahead[number] = next(running[number], None)
            is_out[number] |= ahead[number] is None


def _choices(count: int, weights: Sequence[float], seed: int) -> Iterator[int]:
    """Which source is next, without end."""
    if not weights:
        while True:
            yield from range(count)
    chance = random.Random(f"{seed}/mix")
    while True:
        yield chance.choices(range(count), weights)[0]


def taken(rows: Sequence[T], count: int, key: str) -> list[T]:
    """`count` rows chosen by `key`, in their own order; above `len(rows)` all are taken as often as that fits, and
    some once more.

    >>> taken("abc", 2, "0"), taken("ab", 5, "0")
    (['a', 'b'], ['a', 'b', 'a', 'b', 'b'])
    """
    if not rows:
        return []
    copies, rest = divmod(count, len(rows))
    return [*rows] * copies + [rows[index] for index in chosen(len(rows), rest, key)]


def chosen(count: int, wanted: int, key: str) -> list[int]:
    """Numbers below `count`, in order."""
    return sorted(random.Random(key).sample(range(count), wanted))


def shuffled(rows: Iterator[T], buffer_rows: int, key: str) -> Iterator[T]:
    """In an order that `key` decides, with no more than `buffer_rows` of them in memory."""
    chance = random.Random(key)
    buffer: list[T] = []
    for row in rows:
        if len(buffer) < buffer_rows:
            buffer.append(row)
            continue
        place = chance.randrange(buffer_rows)
        yield buffer[place]
        buffer[place] = row
    chance.shuffle(buffer)
    yield from buffer
