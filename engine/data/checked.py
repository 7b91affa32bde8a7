"""A data set that says what it found in its files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

from engine.data.bad_rows import BadRows, Tolerance
from engine.data.base import RowKind


@runtime_checkable
class CheckedData(Protocol):
    """Rows out of files, of which some may be bad."""

    @property
    def check(self) -> bool:
        """Whether the run is to look at its rows, and do nothing else."""
        ...

    @property
    def tolerance(self) -> Tolerance:
        """How many of them the run can do with."""
        ...

    def described(self, kind: RowKind) -> tuple[str, ...]:
        """A line for each source; none where rows are read while the run goes on."""
        ...

    def bad(self, kind: RowKind) -> BadRows:
        """The rows that were left out."""
        ...

    def places(self, ids: Collection[str]) -> Mapping[str, str]:
        """Of rows, by their ids: file and line. For those that turn out bad after they were read; it reads again."""
        ...
