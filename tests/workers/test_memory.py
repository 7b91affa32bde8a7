"""The peak that is told of a verb is of that verb: what it allocates is in it, what an earlier one freed is not. What a
process holds is told as it is now."""

from __future__ import annotations

import asyncio
import mmap
from pathlib import Path

import numpy as np
import psutil
import pytest

from workers.around_verbs import verbs_within
from workers.memory import GIB, Peaks

BIG, SMALL = 256, 64
"""MiB. The C library gives arrays of this size back to the kernel as soon as they are freed."""
SLACK = 16 / 1024
"""GiB."""


def touched(mib: int) -> float:
    return float(np.ones(mib * 2**17).sum())


class Plain:
    def __init__(self) -> None:
        self.peaks = Peaks()

    def rest(self) -> None:
        """Nothing is allocated."""

    def big(self) -> float:
        return touched(BIG)

    def small(self) -> float:
        return touched(SMALL)

    def nested(self) -> float:
        return self.small()

    async def later(self) -> float:
        await asyncio.sleep(0)
        return touched(BIG)

    def fails(self) -> None:
        touched(BIG)
        raise ValueError("no")


class Worker(Plain):
    """As a group makes them."""


for _name, _verb in verbs_within(Plain, lambda worker, verb: worker.peaks.of(verb)).items():
    setattr(Worker, _name, _verb)


@pytest.fixture
def worker() -> Worker:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("peaks cannot be reset here")
    return Worker()


def test_a_known_allocation_is_the_difference_between_two_verbs(worker: Worker) -> None:
    assert worker.big() == BIG * 2**17
    worker.small(), worker.rest()
    peaks = worker.peaks.take()
    assert peaks["big_gib"] - peaks["rest_gib"] == pytest.approx(BIG * 2**20 / GIB, abs=SLACK)
    assert peaks["small_gib"] - peaks["rest_gib"] == pytest.approx(SMALL * 2**20 / GIB, abs=SLACK)
    assert worker.peaks.take().keys() == {"resident_gib"}


def test_what_awaits_is_watched_until_it_has_its_answer(worker: Worker) -> None:
    worker.rest()
    asyncio.run(worker.later())
    peaks = worker.peaks.take()
    assert peaks["later_gib"] - peaks["rest_gib"] == pytest.approx(BIG * 2**20 / GIB, abs=SLACK)


def test_a_verb_that_another_calls_is_a_part_of_that_one(worker: Worker) -> None:
    worker.rest(), worker.nested()
    peaks = worker.peaks.take()
    assert peaks.keys() == {"rest_gib", "nested_gib", "resident_gib"}
    assert peaks["nested_gib"] - peaks["rest_gib"] == pytest.approx(SMALL * 2**20 / GIB, abs=SLACK)


def test_a_verb_that_fails_is_told_too_and_keeps_its_own_error(worker: Worker) -> None:
    with pytest.raises(ValueError, match="no"):
        worker.fails()
    assert "fails_gib" in worker.peaks.take()


def test_what_a_process_holds_is_told_while_it_holds_it(worker: Worker) -> None:
    before = worker.peaks.take()["resident_gib"]
    kept = np.ones(BIG * 2**17)
    while_kept = worker.peaks.take()["resident_gib"]
    del kept
    assert while_kept - before == pytest.approx(BIG * 2**20 / GIB, abs=SLACK)
    assert worker.peaks.take()["resident_gib"] - before == pytest.approx(0.0, abs=SLACK)


def test_what_is_shared_with_others_is_not_a_process_own(worker: Worker) -> None:
    before = worker.peaks.take()["resident_gib"]
    with mmap.mmap(-1, BIG * 2**20) as shared:  # as Ray's object store lies in a process
        shared.write(b"1" * len(shared))
        assert psutil.Process().memory_info().shared > len(shared)
        assert worker.peaks.take()["resident_gib"] - before == pytest.approx(0.0, abs=SLACK)
