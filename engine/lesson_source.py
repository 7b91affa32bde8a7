"""Where a run's lessons come from, in which order: from memory, or from files as they are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
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
        """What a checkpoint keeps, to go on from: the row whose lessons come next."""
        ...

    @property
    def lessons_taken(self) -> int:
        """Of those that this row makes."""
        ...

    def take(self, count: int) -> list[Lesson]:
        """The next ones."""
        ...

    @property
    def bad(self) -> BadRows:
        """Rows that were left out since it began."""
        ...


class LessonsFrom(Protocol):
    """The lessons to learn from, from a draw on."""

    def __call__(self, next_draw: int, lessons_taken: int = 0) -> LessonSource: ...


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

    @property
    def lessons_taken(self) -> int:
        return 0


class StreamedLessons:
    """Rows are read, and made lessons of, while the run goes on."""

    def __init__(self, stream: RecordStream, make: LessonMaker, tolerance: Tolerance, *, lessons_taken: int) -> None:
        """`lessons_taken`: of those that the stream's next row makes, how many were taken before."""
        self._stream, self._make = stream, make
        self._unwritten = BadRows(tolerance)
        self._made: deque[_Made] = deque()
        self._taken_before = lessons_taken

    @property
    def bad(self) -> BadRows:
        return self._stream.bad.with_later(self._unwritten)

    @property
    def next_draw(self) -> int:
        return self._made[0].draw if self._made else self._stream.drawn

    @property
    def lessons_taken(self) -> int:
        return self._made[0].number if self._made else self._taken_before

    def take(self, count: int) -> list[Lesson]:
        """Raises DataError at a bad row, or at one too many."""
        while len(self._made) < count:
            draw = self._stream.drawn
            rows = self._stream.take(1)
            for lessons in self._unwritten.collect(rows, self._make):
                made = [_Made(lesson=lesson, draw=draw, number=number) for number, lesson in enumerate(lessons)]
                self._made += made[self._taken_before :]
                self._taken_before = 0
            if self._unwritten.tolerance.policy is BadRowPolicy.ERROR or self._unwritten.seen >= CHECKED:
                self._unwritten.settle()
        return [self._made.popleft().lesson for _ in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A lesson that was made of a row."""

    lesson: Lesson
    draw: int
    number: int
    """Among the lessons of its row."""
