"""What every worker of a run is doing right now: each process writes its Python stacks when it gets a signal.

The signal is answered by `faulthandler`, in C: also by a process whose threads all hang.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STACKS_SIGNAL = signal.SIGUSR1
WRITTEN_WITHIN_S = 2.0
FAR_WITHIN_S = 10.0
"""For a node to start a process that sends the signal."""
STACKS_LIMIT = 16 * 2**20
"""Bytes of a file of stacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where a worker's process is."""

    pid: int
    started_s: float
    """As psutil has it: a later process may get the same number."""
    node_id: str


def answer_with_stacks(log: Path) -> None:
    """From now on this process answers the signal, in a file beside its log. Another file says where it is, which
    changes when it is replaced."""
    own = psutil.Process()
    where = Whereabouts(pid=own.pid, started_s=own.create_time(), node_id=ray.get_runtime_context().get_node_id())
    # Open for as long as the process lives: it is written to from a signal handler.
    faulthandler.register(STACKS_SIGNAL, file=_stacks_file(log).open("a"), all_threads=True)
    _where_file(log).write_text(json.dumps(asdict(where)))


def whereabouts_of(log: Path) -> Whereabouts | None:
    """Of the worker with this log; None before it is there."""
    file = _where_file(log)
    return Whereabouts(**json.loads(file.read_text())) if file.exists() else None


def stacks_of(logs: Mapping[str, Path]) -> dict[str, str]:
    """What each worker, by name and with its log, answers; empty for one that does not."""
    files = {name: _stacks_file(log) for name, log in logs.items()}
    there = {name: file for name, file in files.items() if file.exists()}
    for file in there.values():
        begin_anew_if_large(file)
    began = {name: file.stat().st_size for name, file in there.items()}
    _ask([where for log in logs.values() if (where := whereabouts_of(log)) is not None])
    deadline = time.monotonic() + WRITTEN_WITHIN_S
    written: dict[str, str] = {}
    while time.monotonic() < deadline:
        before, written = written, {name: _written(files[name], since=size) for name, size in began.items()}
        if len(written) == len(logs) and all(written.values()) and written == before:
            break
        time.sleep(0.05)
    return {name: written.get(name, "") for name in logs}


def begin_anew_if_large(file: Path, *, limit: int = STACKS_LIMIT) -> None:
    """A file of stacks that has exceeded the limit is emptied; whoever appends to it goes on there."""
    if file.stat().st_size > limit:
        os.truncate(file, 0)


def _stacks_file(log: Path) -> Path:
    return log.with_suffix(".stacks")


def _where_file(log: Path) -> Path:
    return log.with_suffix(".where")


def _ask(places: Sequence[Whereabouts]) -> None:
    """On this machine at once; on others by tasks that run there."""
    own_node = ray.get_runtime_context().get_node_id()
    far = []
    for where in places:
        if where.node_id == own_node:
            _signal(where)
        else:
            there = NodeAffinitySchedulingStrategy(where.node_id, soft=False)
            far.append(ray.remote(_signal).options(num_cpus=0, scheduling_strategy=there).remote(where))
    # A node that does not answer has no stacks to show, and those of the others are wanted all the more.
    with contextlib.suppress(GetTimeoutError, RayError):
        ray.get(far, timeout=FAR_WITHIN_S)


def _signal(where: Whereabouts) -> None:
    # Whoever needs a worker that is gone says so.
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(where.pid)
        if process.create_time() == where.started_s:
            process.send_signal(STACKS_SIGNAL)


def _written(file: Path, *, since: int) -> str:
    with file.open("rb") as opened:
        opened.seek(since)
        return opened.read().decode(errors="replace")
