"""All bad rows of a data set, found in one pass: told together, or left out and counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TypeVar

from engine.data.base import BadRow, DataError, RowError

R = TypeVar("R")
T = TypeVar("T")
SHOWN = 20
"""Bad rows that a run tells before it ends; a check tells all."""
SKIPPED_FILE = "skipped_rows.jsonl"
KINDS_SHOWN = 30


class BadRowPolicy(Enum):
    """What happens to rows that cannot be used."""

    ERROR = "error"
    """One ends the run, before Ray starts."""
    SKIP = "skip"
    """They are left out, counted and listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How many bad rows a run can do with."""

    policy: BadRowPolicy = BadRowPolicy.ERROR
    max_share: float = 0.0
    """Of all rows, with `skip`."""
    tell_all: bool = False
    """A check: every bad row is told, and none is tolerated."""


@dataclass(slots=True)
class BadRows:
    """Collects what is wrong with rows, at any stage that looks at one row at a time.

    Example:
        bad = BadRows(tolerance)
        lessons = list(bad.collect(conversations, render))  # `render` raises DataError for a row that cannot be
        bad.settle()                                        # raises where there are more than are tolerated
    """

    tolerance: Tolerance
    found: list[BadRow] = field(default_factory=list)
    seen: int = 0
    """Rows, good and bad."""

    def collect(self, rows: Iterable[T | RowError], make: Callable[[T], R]) -> Iterator[R]:
        """What `make` makes of each row that is good."""
        for row in rows:
            self.seen += 1
            if isinstance(row, RowError):  # already the reader could not read it
                self.found.append(row.bad)
                continue
            try:
                made = make(row)
            except DataError as error:
                self.found.append(_bad_row(error))
            else:
                yield made

    def is_too_many(self) -> bool:
        if not self.found:
            return False
        tolerance = self.tolerance
        if tolerance.policy is BadRowPolicy.ERROR or tolerance.tell_all:
            return True
        return len(self.found) > tolerance.max_share * self.seen

    def settle(self) -> None:
        """Raises DataError, which tells the bad rows, where there are more of them than are tolerated."""
        if self.is_too_many():
            raise BadRowsError(self)

    def with_later(self, later: BadRows) -> BadRows:
        """These, and those that a later stage found among the good ones."""
        return BadRows(self.tolerance, found=[*self.found, *later.found], seen=self.seen)

    def placed(self, places: Mapping[str, str]) -> BadRows:
        """With where they are: what a later stage finds is told by the row's id alone."""
        found = [replace(bad, where=places.get(bad.id, bad.where)) for bad in self.found]
        return BadRows(self.tolerance, found=found, seen=self.seen)

    def counted(self) -> str:
        """How many of which kind, the most frequent first."""
        kinds = Counter(f"{bad.column}: {bad.kind}" if bad.column else bad.kind for bad in self.found).most_common()
        more = [f"{len(kinds) - KINDS_SHOWN} more kinds"] if len(kinds) > KINDS_SHOWN else []
        return "; ".join([f"{count} x {kind}" for kind, count in kinds[:KINDS_SHOWN]] + more)

    def write(self, folder: Path) -> Path:
        """Lists the bad rows in a file, one JSON object a row."""
        path = folder / SKIPPED_FILE
        path.write_text("".join(f"{json.dumps(asdict(bad))}\n" for bad in self.found), encoding="utf-8")
        return path


class BadRowsError(DataError):
    """More bad rows than are tolerated: every one in a line, or the first ones."""

    def __init__(self, bad_rows: BadRows) -> None:
        found, tolerance = bad_rows.found, bad_rows.tolerance
        self.found: Sequence[BadRow] = tuple(found)
        told = found if tolerance.tell_all else found[:SHOWN]
        lines = [f"{bad.where}: {bad.problem}" for bad in told]
        if len(found) > len(told):
            lines.append(f"... and {len(found) - len(told):,} more; data.check=true tells all")
        of_all = f"{len(found):,} of {bad_rows.seen:,} rows are bad" if len(found) > 1 else "1 bad row"
        lines.append(f"{of_all}: {bad_rows.counted()}")
        where, _, problem = "\n".join(lines).partition(": ")
        super().__init__(problem, where=where, advice=_advice(bad_rows), kind="bad rows")


def _advice(bad_rows: BadRows) -> str:
    tolerance = bad_rows.tolerance
    share = len(bad_rows.found) / bad_rows.seen
    if tolerance.policy is BadRowPolicy.SKIP and not tolerance.tell_all:
        return f"That is {share:.1%}, and data.max_bad_share is {tolerance.max_share:.1%}: mend them, or raise it."
    return "Mend them, or leave them out with data.bad_rows=skip."


def _bad_row(error: DataError) -> BadRow:
    if isinstance(error, RowError):
        return error.bad
    return BadRow(
        id=error.where, where=error.where, kind=error.kind, column="", value="", nearest="", problem=error.problem
    )
