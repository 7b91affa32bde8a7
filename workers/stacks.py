"""What every worker of a run is doing right now: each process writes its Python stacks when it gets a signal.

The signal is answered by `faulthandler`, in C: also by a process whose threads all hang.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STACKS_SIGNAL = signal.SIGUSR1
WRITTEN_WITHIN_S = 2.0
FAR_WITHIN_S = 10.0
"""For a node to start a process that sends the signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where a worker's process is."""

    pid: int
    node_id: str


def here() -> Whereabouts:
    """Of the calling worker."""
    return Whereabouts(pid=os.getpid(), node_id=ray.get_runtime_context().get_node_id())


def stacks_file(log: Path) -> Path:
    """Where the worker of this log writes its stacks."""
    return log.with_suffix(".stacks")


def answer_with_stacks(log: Path) -> None:
    """From now on this process answers the signal, in the file beside its log."""
    # Open for as long as the process lives: it is written to from a signal handler.
    file = stacks_file(log).open("a")
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)


def stacks_of(workers: Mapping[str, tuple[Whereabouts, Path]]) -> dict[str, str]:
    """What each worker, by name and with its log, answers; empty for one that does not."""
    files = {name: stacks_file(log) for name, (_, log) in workers.items()}
    began = {name: file.stat().st_size for name, file in files.items() if file.exists()}
    _ask([where for where, _ in workers.values()])
    deadline = time.monotonic() + WRITTEN_WITHIN_S
    written: dict[str, str] = {}
    while time.monotonic() < deadline:
        before, written = written, {name: _written(files[name], since=size) for name, size in began.items()}
        if len(written) == len(workers) and all(written.values()) and written == before:
            break
        time.sleep(0.05)
    return {name: written.get(name, "") for name in workers}


def _ask(places: Sequence[Whereabouts]) -> None:
    """On this machine at once; on others by tasks that run there."""
    own_node = ray.get_runtime_context().get_node_id()
    far = []
    for where in places:
        if where.node_id == own_node:
            _signal(where.pid)
        else:
            there = NodeAffinitySchedulingStrategy(where.node_id, soft=False)
            far.append(ray.remote(_signal).options(num_cpus=0, scheduling_strategy=there).remote(where.pid))
    # A node that does not answer has no stacks to show, and those of the others are wanted all the more.
    with contextlib.suppress(GetTimeoutError, RayError):
        ray.get(far, timeout=FAR_WITHIN_S)


def _signal(pid: int) -> None:
    # Whoever needs a worker that is gone says so.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, STACKS_SIGNAL)


def _written(file: Path, *, since: int) -> str:
    with file.open("rb") as opened:
        opened.seek(since)
        return opened.read().decode(errors="replace")
