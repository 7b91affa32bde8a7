"""A signal asks a run to stop: at once, or as soon as nothing is half done."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from engine.stopping import ONE_REQUEST_S, STOP_SIGNALS, StopAsked, StopSignals


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signals = StopSignals()
    signals.install()
    yield signals
    for number, handler in before.items():
        signal.signal(number, handler)


def ask(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_stops_at_once_where_nothing_is_held(stop: StopSignals, number: signal.Signals, code: int) -> None:
    with pytest.raises(StopAsked) as asked:
        ask(number)
    assert asked.value.exit_code == code


def test_what_is_held_is_finished_first(stop: StopSignals) -> None:
    done = []
    with pytest.raises(StopAsked), stop.held():
        ask()
        done.append("held")
    assert done == ["held"]


def test_inside_of_what_is_held_a_part_may_be_left_at_any_moment(stop: StopSignals) -> None:
    done = []
    with pytest.raises(StopAsked), stop.held(), stop.allowed():
        ask()
        done.append("not reached")
    assert done == []


def test_what_was_asked_for_before_stops_it_where_a_part_may_be_left(stop: StopSignals) -> None:
    done = []
    with pytest.raises(StopAsked), stop.held():
        ask()
        done.append("the update")
        with stop.allowed():
            done.append("not reached")
    assert done == ["the update"]


def test_an_error_inside_is_not_replaced_by_the_stop(stop: StopSignals) -> None:
    with pytest.raises(ValueError, match="what went wrong"), stop.held():
        ask()
        raise ValueError("what went wrong")


def test_a_second_signal_does_not_wait(stop: StopSignals) -> None:
    done = []
    with pytest.raises(StopAsked), stop.held():
        ask()
        done.append("held")
        ask()
        done.append("the same request")
        time.sleep(1.2 * ONE_REQUEST_S)
        ask()
        done.append("not reached")
    assert done == ["held", "the same request"]


def test_nothing_stops_a_run_that_nobody_asks(stop: StopSignals) -> None:
    with stop.held(), stop.allowed():
        stop.check()
