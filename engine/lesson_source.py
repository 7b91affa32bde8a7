"""Where a run's lessons come from, in which order: from memory, or from files as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.data.bad_rows import BadRowPolicy, BadRows, Tolerance
from engine.data.reading import CHECKED, RecordStream
from engine.data.render import LessonMaker
from engine.shuffle import Shuffle
from workers.lessons import Lesson


class LessonSource(Protocol):
    """Lessons without end."""

    @property
    def next_draw(self) -> int:
        """What a checkpoint keeps, to go on from."""
        ...

    def take(self, count: int) -> list[Lesson]:
        """The next ones."""
        ...

    @property
    def bad(self) -> BadRows:
        """Rows that were left out since it began."""
        ...

    def forget_surplus(self) -> None:
        """Lessons that were made and not taken are made again by nobody: a checkpoint does not hold them."""
        ...


class ShuffledLessons:
    """All of them are in memory; each epoch has its own order, keyed by (seed, epoch)."""

    def __init__(self, lessons: Sequence[Lesson], *, seed: int, next_draw: int) -> None:
        self._lessons = lessons
        self._shuffle, self._next_draw = Shuffle(num_rows=len(lessons), seed=seed), next_draw
        self.bad = BadRows(Tolerance())
        """None: what is in memory was looked at before."""

    @property
    def next_draw(self) -> int:
        return self._next_draw

    def take(self, count: int) -> list[Lesson]:
        draws = range(self._next_draw, self._next_draw + count)
        self._next_draw += count
        return [self._lessons[self._shuffle.row(draw)] for draw in draws]

    def forget_surplus(self) -> None:
        """There is none."""


class StreamedLessons:
    """Rows are read, and made lessons of, while the run goes on."""

    def __init__(self, stream: RecordStream, make: LessonMaker, tolerance: Tolerance) -> None:
        self._stream, self._make = stream, make
        self._unwritten = BadRows(tolerance)
        self._made: list[Lesson] = []

    @property
    def bad(self) -> BadRows:
        return self._stream.bad.with_later(self._unwritten)

    @property
    def next_draw(self) -> int:
        return self._stream.drawn

    def take(self, count: int) -> list[Lesson]:
        """Raises DataError at a bad row, or at one too many."""
        while len(self._made) < count:
            rows = self._stream.take(count - len(self._made))
            for lessons in self._unwritten.collect(rows, self._make):
                self._made += lessons
            if self._unwritten.tolerance.policy is BadRowPolicy.ERROR or self._unwritten.seen >= CHECKED:
                self._unwritten.settle()
        taken, self._made = self._made[:count], self._made[count:]
        return taken

    def forget_surplus(self) -> None:
        self._made = []
