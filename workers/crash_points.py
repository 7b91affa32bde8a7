"""Named places where a process of a run can be made to die, to prove that nothing is lost when one does.

Nothing happens unless `HELIOSTAT_CRASHES` names a file: a JSON list of crashes, `{"point", "skip", "dies"}` each. They
come one after the other: the first process that reaches the point of the first one, after `skip` times, writes down
that it did, in `<file>.<number>`, and kills itself; from then on the second one is due. Where `dies` is false it goes
on, and whoever looks for what it wrote may disturb the run there in another way. Points are called

    <worker>/<verb>/begin|end    policy 0/update/end        in the worker's process
    driver/<phase>/begin|end     driver/generate/begin      in the run's own
    driver/commit/<what is next> driver/commit/rename       in the thread that commits a checkpoint
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CRASHES_ENV = "HELIOSTAT_CRASHES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """One that is to happen."""

    point: str
    skip: int
    """Times that the point is passed first, in the process that dies and since the crash before this one."""
    dies: bool
    witness: Path
    """Written by the process that came there."""


@contextmanager
def crash_points(name: str) -> Iterator[None]:
    """One before the block, and one after it where it ends well."""
    crash_point(f"{name}/begin")
    yield
    crash_point(f"{name}/end")


def crash_point(name: str) -> None:
    """Dies here, if that is what is due."""
    for crash in _crashes():
        if not crash.witness.exists():
            if crash.point == name and _passed(crash) == crash.skip:
                _bear_witness(crash)
                if crash.dies:
                    os.kill(os.getpid(), signal.SIGKILL)
            return


@functools.cache
def _crashes() -> tuple[Crash, ...]:
    file = os.environ.get(CRASHES_ENV, "")
    if not file:
        return ()
    return tuple(
        Crash(point=crash["point"], skip=crash["skip"], dies=crash["dies"], witness=Path(f"{file}.{number}"))
        for number, crash in enumerate(json.loads(Path(file).read_text()))
    )


_times_passed: dict[Crash, int] = {}


def _passed(crash: Crash) -> int:
    """Before this time."""
    before = _times_passed.get(crash, 0)
    _times_passed[crash] = before + 1
    return before


def _bear_witness(crash: Crash) -> None:
    crash.witness.write_text(json.dumps({"point": crash.point, "pid": os.getpid(), "at_s": time.time()}))
