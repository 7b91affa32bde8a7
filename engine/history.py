"""A run's metrics so far: what it looks back at after every step, in a few bytes each, for it may have a million."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable

import numpy as np

from workers.records import Metrics

NEWEST = 10
"""Rows that are kept as they came."""


class History:
    """Rows of metrics, one a step or fewer, in order. Not every row has every metric."""

    def __init__(self) -> None:
        self._numbers = _Column()
        self._columns: dict[str, _Column] = {}
        self._newest: deque[Metrics] = deque(maxlen=NEWEST)

    @classmethod
    def of(cls, rows: Iterable[tuple[int, Metrics]]) -> History:
        """Each with the number of its step."""
        made = cls()
        for step, metrics in rows:
            made.add(step, metrics)
        return made

    def add(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._columns.setdefault(name, _Column()).add(step, value)
        self._newest.append(metrics)
        self._numbers.add(step, step)

    def __len__(self) -> int:
        return len(self._numbers.values)

    @property
    def last_step(self) -> int:
        """0 before there is one."""
        return int(self._numbers.values[-1]) if len(self) else 0

    def has(self, step: int) -> bool:
        return bool((self._numbers.values == step).any())

    def newest(self, count: int) -> list[Metrics]:
        """The last rows, at most `NEWEST`."""
        if count > NEWEST:
            raise ValueError(f"{count} rows of a history that keeps {NEWEST}")
        return list(self._newest)[-count:]

    def values(self, name: str) -> np.ndarray:
        """[n] of the rows that have it, in order."""
        return self._columns[name].values if name in self._columns else np.empty(0)

    def steps(self, name: str) -> np.ndarray:
        """[n] the numbers of the steps that have it."""
        return self._columns[name].steps if name in self._columns else np.empty(0)

    def until_now(self) -> History:
        """The same, to which nothing is added later; for another thread."""
        same = History()
        # What `add` writes last is copied first: rows that are counted are in the others, whatever is added meanwhile.
        same._numbers = copy.copy(self._numbers)
        same._newest = self._newest.copy()
        same._columns = {name: copy.copy(column) for name, column in self._columns.copy().items()}
        return same


class _Column:
    """A metric, with room for more: what is in use never moves or changes, so that a copy may share it."""

    def __init__(self) -> None:
        self._room, self._count = np.empty((2, 16)), 0

    def add(self, step: int, value: float) -> None:
        if self._count == self._room.shape[1]:
            self._room = np.concatenate([self._room, np.empty_like(self._room)], axis=1)
        self._room[:, self._count] = step, value
        self._count += 1

    @property
    def steps(self) -> np.ndarray:
        return self._room[0, : self._count]

    @property
    def values(self) -> np.ndarray:
        return self._room[1, : self._count]
