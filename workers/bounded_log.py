"""A log that cannot fill a disk: of all that was ever written, the first lines and the newest ones stay.

The file is shortened in place, and stays the same file: whoever writes to it (this process, those it started, their
own) has opened it for appending, and goes on at its new end. A file that was moved aside would be written to by all who
hold it open, without bound; a pipe to a thread would lose a dying process's last words, and stop it while that hangs.
"""

from __future__ import annotations

import contextlib
import sched
import threading
from pathlib import Path
from typing import BinaryIO

LOG_LIMIT = 64 * 2**20
"""Bytes of a log, and of what is kept beside it of earlier lines."""
LOOK_EVERY_S = 1.0
BLOCK = 2**20


def keep_bounded(log: Path, *, limit: int = LOG_LIMIT, look_every_s: float = LOOK_EVERY_S) -> None:
    """From now on, while this process lives: the log is shortened soon after it has exceeded `limit` bytes, and
    `<log>.old` then holds its first lines and as many of the newest as fit into as many bytes."""
    file = log.open("a+b", buffering=0)
    scheduler = sched.scheduler()

    def look() -> None:
        # A full disk is no reason to stop looking.
        with contextlib.suppress(OSError):
            if file.seek(0, 2) > limit:
                _shorten(file, old_of(log), limit)
        scheduler.enter(look_every_s, 0, look)

    scheduler.enter(look_every_s, 0, look)
    # While it waits it is in no code of the run's own: who asks what a worker does is not told of it.
    threading.Thread(target=scheduler.run, name="log", daemon=True).start()


def old_of(log: Path) -> Path:
    """Where earlier lines are kept."""
    return log.with_name(f"{log.name}.old")


def _shorten(file: BinaryIO, old: Path, limit: int) -> None:
    """A line that is written between reading the newest ones and cutting the file off is lost."""
    few = limit // 8
    # On a full disk the log is shortened all the same.
    with contextlib.suppress(OSError):
        _keep(file, old, first=_start_of(old if old.exists() else Path(file.name), few), newest=limit - 2 * few)
    told = f"(earlier lines are in {old.name}, as far as they are kept)\n".encode()
    file.seek(-few, 2)
    newest = file.read(few + BLOCK)
    file.truncate(0)
    file.write(told + (newest.partition(b"\n")[2] or newest))


def _start_of(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _keep(file: BinaryIO, old: Path, *, first: bytes, newest: int) -> None:
    with old.open("wb") as kept:
        kept.write(first + b"\n(what came here is not kept)\n")
        file.seek(-newest, 2)
        # Not to its end, which may move away faster than this can follow.
        while newest and (block := file.read(min(newest, BLOCK))):
            kept.write(block)
            newest -= len(block)
