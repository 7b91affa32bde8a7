"""A run that goes on by itself after one of its workers died for good."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from engine.config import Config, Resume
from workers.stopped import WorkerDied


def with_restarts(attempt: Callable[[Config], None], config: Config) -> None:
    """Attempt the run; where a worker dies, attempt it again from the newest checkpoint, `run.max_restarts` times.

    Raises what any other failure raises, and the death that was one too many.
    """
    for restarts_left in range(config.run.max_restarts, -1, -1):
        try:
            return attempt(config)
        except WorkerDied as death:
            if not restarts_left:
                raise
            print(f"heliostat: {death}", file=sys.stderr)
            print(
                f"heliostat: going on from the newest checkpoint (run.max_restarts: {restarts_left} left)",
                file=sys.stderr,
                flush=True,
            )
            # What this run has written is its own, and not an earlier one's that is to be moved aside.
            config = replace(config, run=replace(config.run, resume=Resume.AUTO))
