"""Room for checkpoints: how much there is, and whether a save failed for lack of it."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.checkpoint import CheckpointError
from workers.stopped import RunStopped

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
FULL_BELOW_BYTES = 2**20
"""Who failed to write with less room than this left has filled the file system, whatever it says: torch speaks of an
`iostream error` or an `unexpected pos`."""


class DiskFull(CheckpointError):
    """There is no room for one more checkpoint."""

    def __init__(self, message: str, *, need: int, have: int) -> None:
        super().__init__(message)
        self.need = need
        """Bytes of a checkpoint, or as many as are known of."""
        self.have = have
        """Bytes that are free without it."""


def free_bytes(folder: Path) -> int:
    """On the folder's file system, or on that where it would be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.isdir(path))
    return shutil.disk_usage(there).free


def is_for_lack_of_room(error: Exception, *, need: int, left: int, have: int) -> bool:
    """`left`, `have`: bytes that were free when it was raised, and after what was written has been removed."""
    if any(isinstance(one, OSError) and one.errno in NO_ROOM for one in _with_causes(error)):
        return True
    # Most errors have lost their number on the way here. A worker that died is recovered from in its own way.
    return (left < FULL_BELOW_BYTES or have < need) and not isinstance(error, RunStopped)


def why_no_room(*, need: int, have: int, error: Exception | None) -> str:
    """
    >>> why_no_room(need=2_060_000_000, have=380_000_000, error=None)
    'a checkpoint needs 2.1 GB and 0.3 GB are free'
    >>> why_no_room(need=700, have=50_000_000, error=OSError(122, "Disk quota exceeded"))
    '50.0 MB are free, but writing ended for lack of room ([Errno 122] Disk quota exceeded)'
    """
    free = _shown(have, math.floor)
    if have < need:
        return f"a checkpoint needs {_shown(need, math.ceil)} and {free} are free"
    # A quota, or it is larger than was known.
    return f"{free} are free, but writing ended for lack of room ({error})"


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]


def _shown(count: int, rounded: Callable[[float], int]) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if 10 * count >= size:
            return f"{rounded(10 * count / size) / 10} {unit}"
    return f"{count} bytes"
