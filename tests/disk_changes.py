"""Every change of the disk that a block of code makes, told to somebody: who lists it, lets it fail, or kills.

What Python does is seen: files opened for writing and each of their writes as it reaches the operating system, and the
functions of `os` that change something. What C++ writes by itself is not.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

CRASHED = 77
UNCAUGHT = 99
PATIENCE_S = 120
OF_A_PATH = ("mkdir", "rmdir", "unlink", "remove", "truncate")
OF_TWO_PATHS = ("rename", "replace", "link", "symlink")
OF_A_FILE = ("fsync", "fdatasync", "ftruncate")
OPENS_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TAKES_NO_ROOM = frozenset({"rmdir", "unlink", "remove"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change, as it is asked for.

    Example:
        Change(verb="rename", path=Path("a/new.tmp"), to=Path("a/new"))
    """

    verb: str
    """`open` for writing, `write`, or the function of `os`."""
    path: Path
    to: Path | None = None
    data: bytes = b""
    """Of a write."""


Perform = Callable[[bytes], object]
"""Makes the change; of a write, with as many of its bytes as are given."""
OnChange = Callable[[Change, Perform], object]
"""Answers what `Perform` does, unless it is meant to fail."""


@contextmanager
def told(on_change: OnChange) -> Iterator[None]:
    """While the block runs, each change is `on_change`'s to make. Of all threads."""
    kept = {name: getattr(os, name) for name in (*OF_A_PATH, *OF_TWO_PATHS, *OF_A_FILE, "open", "write")}
    kept_open = io.open

    for name in OF_A_PATH:
        setattr(os, name, _of_a_path(name, kept[name], on_change))
    for name in OF_TWO_PATHS:
        setattr(os, name, _of_two_paths(name, kept[name], on_change))
    for name in OF_A_FILE:
        setattr(os, name, _of_a_file(name, kept[name], on_change))

    def write(descriptor: int, data: bytes) -> object:
        return on_change(
            Change(verb="write", path=_path_of(descriptor), data=bytes(data)),
            lambda part: kept["write"](descriptor, part),
        )

    def open_descriptor(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> object:
        if not flags & OPENS_TO_WRITE:
            return kept["open"](path, flags, mode, dir_fd=dir_fd)
        change = Change(verb="open", path=_full(path, dir_fd))
        return on_change(change, lambda _: kept["open"](path, flags, mode, dir_fd=dir_fd))

    def open_file(file: str, mode: str = "r", buffering: int = -1, *args: object, **named: object) -> object:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return kept_open(file, mode, buffering, *args, **named)
        change = Change(verb="open", path=Path(os.fspath(file)).absolute())
        raw = on_change(change, lambda _: _ToldFile(change.path, mode, on_change))
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **named)

    os.write, os.open = write, open_descriptor
    io.open = builtins.open = open_file
    try:
        yield
    finally:
        io.open = builtins.open = kept_open
        for name, function in kept.items():
            setattr(os, name, function)


class _ToldFile(io.FileIO):
    """Under Python's own buffers, so that its writes are those that the operating system is asked for."""

    def __init__(self, path: Path, mode: str, on_change: OnChange) -> None:
        super().__init__(path, mode.replace("b", "").replace("t", ""))
        self._path, self._on_change = path, on_change

    def write(self, data: bytes) -> object:
        return self._on_change(Change(verb="write", path=self._path, data=bytes(data)), super().write)


def _of_a_path(name: str, function: Callable[..., object], on_change: OnChange) -> Callable[..., object]:
    def call(path: str, *args: object, dir_fd: int | None = None, **named: object) -> object:
        where = {} if dir_fd is None else {"dir_fd": dir_fd}
        return on_change(Change(verb=name, path=_full(path, dir_fd)), lambda _: function(path, *args, **where, **named))

    return call


def _of_two_paths(name: str, function: Callable[..., object], on_change: OnChange) -> Callable[..., object]:
    def call(path: str, to: str) -> object:
        return on_change(Change(verb=name, path=_full(path, None), to=_full(to, None)), lambda _: function(path, to))

    return call


def _of_a_file(name: str, function: Callable[..., object], on_change: OnChange) -> Callable[..., object]:
    def call(descriptor: int, *args: object) -> object:
        return on_change(Change(verb=name, path=_path_of(descriptor)), lambda _: function(descriptor, *args))

    return call


def _full(path: str, dir_fd: int | None) -> Path:
    return (Path.cwd() if dir_fd is None else _path_of(dir_fd)) / os.fspath(path)


def _path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


# ----------------------------------------------------------------------------- what may go wrong


class Fault(Enum):
    """Of the change that it befalls."""

    CRASH = "crash"
    TORN = "torn"
    """Half of a write's bytes, then a crash."""
    EIO = "eio"
    ENOSPC = "enospc"
    """After half of a write's bytes."""
    BROKEN_DISK = "broken disk"
    """EIO, of this change and all that follow."""
    FULL_DISK = "full disk"
    """ENOSPC, of this change and all that follow and take room."""


ERRNO = {Fault.EIO: errno.EIO, Fault.BROKEN_DISK: errno.EIO, Fault.ENOSPC: errno.ENOSPC, Fault.FULL_DISK: errno.ENOSPC}


def failing(number: int, fault: Fault) -> OnChange:
    """Lets changes be made, but for the one of this number, from 1."""
    count = 0

    def on_change(change: Change, perform: Perform) -> object:
        nonlocal count
        count += 1
        lasts = fault is Fault.BROKEN_DISK or (fault is Fault.FULL_DISK and change.verb not in TAKES_NO_ROOM)
        if count != number and not (lasts and count > number):
            return perform(change.data)
        if fault in (Fault.TORN, Fault.ENOSPC, Fault.FULL_DISK) and len(change.data) > 1:
            perform(change.data[: len(change.data) // 2])
        if fault not in ERRNO:
            os._exit(CRASHED)
        raise OSError(ERRNO[fault], os.strerror(ERRNO[fault]), str(change.path))

    return on_change


def changes_of(action: Callable[[], object]) -> list[Change]:
    """Makes them, too."""
    changes: list[Change] = []

    def on_change(change: Change, perform: Perform) -> object:
        changes.append(change)
        return perform(change.data)

    with told(on_change):
        action()
    return changes


def in_a_child(action: Callable[[], int]) -> int:
    """The exit code of a process that does it: what it returns, CRASHED, or UNCAUGHT after it raised."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = UNCAUGHT
        signal.alarm(PATIENCE_S)  # a child that hangs fails its test
        try:
            code = action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
