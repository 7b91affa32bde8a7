"""A run that is asked, by a signal, what it waits for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from workers.failures import Roster
from workers.stacks import STACKS_SIGNAL

TellLines = Callable[[Sequence[str]], None]


@contextmanager
def telling_on_signal(roster: Roster, tell: TellLines) -> Iterator[None]:
    """While the block runs, `kill -USR1` has the run say who waits for whom since when, and where everybody is.

    Only a process's main thread can be asked; in another one, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        # Not here: the main thread may hold any lock.
        threading.Thread(target=lambda: tell(roster.report()), name="telling", daemon=True).start()

    before = signal.signal(STACKS_SIGNAL, on_signal)
    try:
        yield
    finally:
        signal.signal(STACKS_SIGNAL, before)
