"""A limit on what one response may take, much below that of a call, for work that a pattern or a schema asks for."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from rewards.score import CannotJudge, FailureKind


@contextlib.contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raises CannotJudge (TIMEOUT) in the midst of Python code, or of a match of `re`, that takes longer.

    Counted is this process's own time on a CPU, so that a busy machine makes nobody late. The process lives on, which
    is cheaper than to have it killed when the call's time is up. Only a main thread can be stopped so; in any other
    there is no limit.

    >>> import re
    >>> with time_limit(0.1, "the pattern"):
    ...     re.search("(a|a)*b", "a" * 50)
    Traceback (most recent call last):
    rewards.score.CannotJudge: the pattern takes more than 0.1 s of this response
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise CannotJudge(FailureKind.TIMEOUT, f"{what} takes more than {seconds:g} s of this response")

    before = signal.signal(signal.SIGVTALRM, stop)
    # Again and again: the code may have caught the first.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)
