"""What a worker gets when it becomes an actor: a name, a log of its own, its memory watched, and an answer to who asks
where it is.
"""

from __future__ import annotations

import gc
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workers.around_verbs import verbs_within
from workers.bounded_log import keep_bounded
from workers.crash_points import crash_points
from workers.memory import Peaks
from workers.stacks import answer_with_stacks
from workers.vitals import Vitals, replaces_another


def as_actor(worker_class: type) -> type:
    """The worker, with a name of its own, everything that its process prints going to a file of its own, and the
    memory of its verbs watched."""

    class Logged(worker_class):
        def __init__(self, name: str, log_path: str, secrets: dict[str, str], *arguments: Any) -> None:
            self._name_in_run, self._life, self._peaks = name, uuid.uuid4().hex, Peaks()
            self._replaces_another = replaces_another()
            os.environ.update(secrets)  # not by a runtime_env, which Ray writes to its logs
            _redirect_output(Path(log_path))
            keep_bounded(Path(log_path))
            answer_with_stacks(Path(log_path))
            super().__init__(*arguments)
            # Libraries are never garbage: a collection that looks at all of them stops every thread for a fifth of a
            # second, again and again.
            gc.collect()
            gc.freeze()

        def __repr__(self) -> str:
            """How Ray names it in tracebacks."""
            return self._name_in_run

        def take_vitals(self) -> Vitals:
            return Vitals(life=self._life, replaces_another=self._replaces_another, memory_gib=self._peaks.take())

    for verb, call in verbs_within(worker_class, _around).items():
        setattr(Logged, verb, call)
    Logged.__name__ = Logged.__qualname__ = worker_class.__name__
    return Logged


@contextmanager
def _around(worker: Any, verb: str) -> Iterator[None]:
    with worker._peaks.of(verb), crash_points(f"{worker!r}/{verb}"):
        yield


def _redirect_output(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
