"""A data set that says what it found in its files."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from engine.data.bad_rows import BadRows, Tolerance
from engine.data.base import RowKind
from engine.data.reading import RecordStream


@runtime_checkable
class CheckedData(Protocol):
    """Rows out of files, of which some may be bad."""

    @property
    def check(self) -> bool:
        """Whether the run is to look at its rows, and do nothing else."""
        ...

    @property
    def streaming(self) -> bool:
        """Whether rows are read while the run goes on."""
        ...

    @property
    def tolerance(self) -> Tolerance: ...

    def described(self, kind: RowKind) -> tuple[str, ...]: ...

    def bad(self, kind: RowKind) -> BadRows: ...

    def stream(self, kind: RowKind, *, drawn: int = 0) -> RecordStream: ...
