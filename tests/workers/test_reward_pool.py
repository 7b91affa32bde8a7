"""The pool: whatever hangs, everybody else is judged, in time, and it stays as large as it was."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.judging import reward_specs
from rewards.item import Item
from rewards.load import RewardError
from rewards.score import Failure, FailureKind, Judgement
from rewards.spec import Isolation
from workers.config import RewardConfig
from workers.reward_pool import WAITING_PER_PROCESS, RewardPool
from workers.scoring_child import Limits

TEXT = """
import os, threading, time

def judge(response, answer, **row):
    if response == "hang":
        while True: pass
    if response == "exit":
        os._exit(3)
    if response.startswith("sleep"):
        time.sleep(float(response.partition(" ")[2]))
        return os.getppid()
    return float(response == answer)
"""
BOTH = pytest.mark.parametrize("isolation", [Isolation.SAMPLE, Isolation.WORKER], ids=lambda kind: kind.value)


@contextlib.contextmanager
def pool_of(
    folder: Path, *, timeout_s: float, processes: int = 2, isolation: Isolation = Isolation.SAMPLE, text: str = TEXT
) -> Iterator[RewardPool]:
    file = folder / "mine.py"
    file.write_text(text)
    specs = reward_specs(RewardConfig(function=f"{file}:judge", isolation=isolation))
    limits = Limits(timeout_s=timeout_s, memory_gib=2.0)
    with contextlib.closing(RewardPool(specs, limits, processes=processes)) as pool:
        yield pool


def items(*responses: str) -> list[Item]:
    return [
        Item(
            id=f"0/{number}", response=response, answer="46", prompt="", messages=(), from_text=True, token_ids=(),
            row={},
        )
        for number, response in enumerate(responses)
    ]  # fmt: skip


def kinds(judgements: Sequence[Judgement]) -> list[FailureKind | float]:
    return [judgement.kind if isinstance(judgement, Failure) else judgement.total for judgement in judgements]


def starve(folder: Path, *, hung: int, honest: int, timeout_s: float, isolation: Isolation) -> None:
    """Hung responses spread among honest ones, and some in a row, in groups of eight, all asked for at once."""
    total = hung + honest
    first = hung // 2
    responses = ["hang"] * first + ["46" if place % 2 else "45" for place in range(total - first)]
    for place in range(hung - first):
        responses[first + place * ((total - first) // (hung - first))] = "hang"
    expected = [{"hang": FailureKind.TIMEOUT, "46": 1.0, "45": 0.0}[response] for response in responses]
    with pool_of(folder, timeout_s=timeout_s, isolation=isolation) as pool, ThreadPoolExecutor(8) as threads:
        groups = [items(*responses[start : start + 8]) for start in range(0, total, 8)]
        said = list(threads.map(lambda group: pool.judge(0, group).result(), groups))
        assert [kind for group in said for kind in kinds(group)] == expected
        assert expected.count(FailureKind.TIMEOUT) == hung
        assert whole(pool, 2)


def whole(pool: RewardPool, processes: int, within_s: float = 5.0) -> bool:
    """Whether as many of its processes live as it was made with."""
    deadline = time.monotonic() + within_s
    living = 0
    while living != processes and time.monotonic() < deadline:
        living = sum(not child.is_dead() for one in pool._living for child in list(one._children.values()))
        time.sleep(0.02)
    return living == processes and all(thread.is_alive() for thread in pool._threads)


@BOTH
def test_hung_responses_starve_nobody(tmp_path: Path, isolation: Isolation) -> None:
    starve(tmp_path, hung=8, honest=80, timeout_s=1.0, isolation=isolation)


@pytest.mark.slow
@BOTH
def test_a_hundred_hung_responses_starve_none_of_a_thousand(tmp_path: Path, isolation: Isolation) -> None:
    starve(tmp_path, hung=100, honest=1000, timeout_s=1.0, isolation=isolation)


@BOTH
def test_crashes_leave_the_pool_whole(tmp_path: Path, isolation: Isolation) -> None:
    with pool_of(tmp_path, timeout_s=5.0, isolation=isolation) as pool:
        said = [pool.judge(0, items("46", "exit", "46")) for _ in range(6)]
        assert [kinds(future.result()) for future in said] == [[1.0, FailureKind.CRASH, 1.0]] * 6
        assert whole(pool, 2)


def test_waiting_for_a_process_does_not_count(tmp_path: Path) -> None:
    """Twice what two processes can do: each response waits far longer than its limit, and none is late."""
    with pool_of(tmp_path, timeout_s=1.0) as pool:
        capacity = 2 / 0.1
        futures: list[Future] = []
        with ThreadPoolExecutor(64) as producers:
            started = time.monotonic()
            for number in range(64):
                time.sleep(max(0.0, started + number / (2 * capacity) - time.monotonic()))
                futures.append(producers.submit(lambda: pool.judge(0, items("sleep 0.1")).result()))
            said = [future.result()[0] for future in futures]
        assert time.monotonic() - started > 3 * 1.0
    assert not [judgement for judgement in said if isinstance(judgement, Failure)]


def test_slow_responses_of_a_group_are_shared_out(tmp_path: Path) -> None:
    with pool_of(tmp_path, timeout_s=5.0) as pool:
        pool.judge(0, items("sleep 0.1")).result()  # from now on it is known as slow
        started = time.monotonic()
        said = pool.judge(0, items(*["sleep 0.2"] * 4)).result()
        took_s = time.monotonic() - started
    assert 0.4 <= took_s < 0.7
    assert len(set(kinds(said))) == 2  # of two zygotes


def test_who_brings_more_than_is_judged_waits(tmp_path: Path) -> None:
    with pool_of(tmp_path, timeout_s=5.0, processes=1) as pool:
        brought: list[Future] = []

        def bring() -> None:
            for _ in range(WAITING_PER_PROCESS + 6):
                brought.append(pool.judge(0, items("sleep 0.2")))

        producer = threading.Thread(target=bring)
        producer.start()
        time.sleep(0.1)
        taken_in = len(brought)
        judged = sum(future.done() for future in brought[:taken_in])  # none, but on a busy machine
        assert taken_in <= WAITING_PER_PROCESS + 1 + judged and producer.is_alive()
        producer.join()
        assert all(not isinstance(future.result()[0], Failure) for future in brought)


def test_closing_does_not_wait_for_what_hangs(tmp_path: Path) -> None:
    with pool_of(tmp_path, timeout_s=1000.0, processes=1) as pool:
        futures = [pool.judge(0, items("hang")) for _ in range(3)]
        time.sleep(0.3)
        started = time.monotonic()
        pool.close()
        assert time.monotonic() - started < 2
        for future in futures:
            with pytest.raises(ValueError, match="closed"):
                future.result(timeout=1)
        with pytest.raises(ValueError, match="closed"):
            pool.judge(0, items("46"))


def test_many_threads_ask_at_once_and_each_gets_its_own(tmp_path: Path) -> None:
    with pool_of(tmp_path, timeout_s=5.0) as pool, ThreadPoolExecutor(6) as threads:
        groups = [items(*["46" if (number >> place) & 1 else "45" for place in range(6)]) for number in range(64)]
        said = list(threads.map(lambda group: pool.judge(0, group).result(), groups))
    for number, group in enumerate(said):
        assert kinds(group) == [float((number >> place) & 1) for place in range(6)]


def test_a_function_that_cannot_be_used_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    threads = threading.active_count()
    with (
        pytest.raises(RewardError, match="no_such_module"),
        pool_of(tmp_path, timeout_s=1.0, text="import no_such_module"),
    ):
        raise AssertionError
    assert threading.active_count() == threads


def test_threads_that_an_import_starts_are_told_of_once_and_hang_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = """
import threading
asked, answered = threading.Event(), threading.Event()
def serve():
    asked.wait()
    answered.set()
threading.Thread(target=serve, daemon=True).start()
def judge(response, answer):
    if response == "wait":
        asked.set()
        answered.wait()
    return 1.0
"""
    with pool_of(tmp_path, timeout_s=1.0, processes=1, text=text) as pool:
        said = pool.judge(0, items("46", "wait", "46", "wait")).result()
    assert kinds(said) == [1.0, FailureKind.TIMEOUT, 1.0, FailureKind.TIMEOUT]
    assert capfd.readouterr().err.count("started 1 threads, which the process of a call does not have") == 1
