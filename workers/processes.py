"""Processes as the kernel keeps them: who descends from whom, and who dies with whom. Linux; elsewhere best effort."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None)
ROOT = Path(__file__).resolve().parents[1]
"""Where `workers` and `rewards` are."""


def import_path() -> str:
    """PYTHONPATH of a process that this one starts: it finds our packages, whatever its current folder, and then what
    this one was told to find."""
    inherited = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{inherited}" if inherited else str(ROOT)


def die_with(parent: int, *, by: signal.Signals = signal.SIGKILL) -> None:
    """The kernel sends `by` to this process when the thread that started it ends, also while it hangs."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)  # the parent died first


def adopt_orphans() -> None:
    """Whatever descends from this process becomes its child when its own parent ends, and so stays to be found."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)


def has_children() -> bool:
    """Whether this process has any, dead ones that nobody asked about included. One system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children_of(parents: Iterable[int]) -> set[int]:
    """The processes whose parent is one of these, dead ones that nobody asked about included."""
    wanted, found = set(parents), set()
    # Not /proc/<pid>/task/<tid>/children, which many kernels are built without.
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int(entry.read_bytes().rpartition(b")")[2].split()[1])
            if parent in wanted:
                found.add(int(entry.parent.name))
    return found


def descendants_of(process: int) -> set[int]:
    found: set[int] = set()
    generation = {process}
    while generation := children_of(generation) - found:
        found |= generation
    return found


def kill(processes: Iterable[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)


def kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def kill_tree(leader: int) -> None:
    """A process, its group, and all that descends from it, each with its group. It must not have been waited for: its
    number could be another process's by now."""
    descendants = descendants_of(leader)
    kill_group(leader)
    for process in descendants:
        kill_group(process)
    kill([leader, *descendants])
