"""A limit on one response's work, far below that of a call: whatever the work is, and nothing of it stays."""

from __future__ import annotations

import re
import signal
import threading
import time

import pytest

from rewards.score import CannotJudge, FailureKind
from rewards.time_limit import time_limit


def stubborn() -> None:
    """Takes the first of them for one of its own errors."""
    try:
        while True:
            pass
    except Exception:
        while True:
            pass


WORK = {
    "code": lambda: sum(1 for _ in iter(int, 1)),
    "a pattern": lambda: re.fullmatch(r"(x+x+)+y", "x" * 5000),
    "a sort": lambda: sorted(range(4 * 10**6), key=lambda number: -number),
    "code that catches it": stubborn,
}


@pytest.mark.parametrize("name", WORK)
def test_work_that_takes_longer_is_stopped(name: str) -> None:
    begun = time.process_time()
    with pytest.raises(CannotJudge, match=r"the rule takes more than 0.05 s") as caught, time_limit(0.05, "the rule"):
        WORK[name]()
    assert caught.value.failure.kind is FailureKind.TIMEOUT
    assert time.process_time() - begun < 2.0


def test_waiting_is_no_work() -> None:
    with time_limit(0.05, "the rule"):
        time.sleep(0.15)


def test_nothing_of_it_stays() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    with time_limit(0.05, "the rule"):
        assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 0
    with pytest.raises(KeyError), time_limit(0.05, "the rule"):
        raise KeyError
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    begun = time.process_time()
    while time.process_time() - begun < 0.15:
        pass


def test_in_another_thread_there_is_no_limit_and_no_error() -> None:
    said: list[float] = []

    def work() -> None:
        with time_limit(0.02, "the rule"):
            begun = time.process_time()
            while time.process_time() - begun < 0.1:
                pass
        said.append(1.0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [1.0]
