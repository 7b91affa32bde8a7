"""Processes that judge, kept warm, and the threads that speak to them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from rewards.item import Item
from rewards.load import RewardError
from rewards.score import Judgement
from rewards.spec import Convention, Spec
from workers.scoring import RewardProcess
from workers.scoring_child import Limits

WAITING_PER_PROCESS = 4
"""Jobs that wait for each process; who brings more waits, too."""
JOB_S = 0.004
"""What a job should take at least: shorter ones cost more to hand over than another process could save."""
MEMORY = 0.8
"""Of the mean time of a function's responses, at each further job."""

Judgements = tuple[Judgement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    function: int
    items: tuple[Item, ...]
    answer: Future[Judgements]


class RewardPool:
    """Some processes, each with every function of the run imported. Any thread may ask.

    The time limit of a response begins when a process begins with it: waiting for one never counts.
    """

    def __init__(self, specs: Sequence[Spec], limits: Limits, *, processes: int) -> None:
        """Raises RewardError where a function cannot be used as configured."""
        self._specs, self._limits = tuple(specs), limits
        lock = threading.Lock()
        self._work, self._room = threading.Condition(lock), threading.Condition(lock)
        """A job was brought; one was taken. Each wakes one thread: waking all would cost more than a job."""
        self._waiting: deque[_Job] = deque()
        self._most_waiting = WAITING_PER_PROCESS * processes
        self._closed = False
        self._living: list[RewardProcess] = []
        self._item_s = [0.0] * len(self._specs)
        """How long a response takes, of those that a function judged lately."""
        started: list[Future[None]] = [Future() for _ in range(processes)]
        # Each process has a thread of its own, which lives as long as the pool: the kernel ties the process to it.
        self._threads = [threading.Thread(target=self._serve, args=(future,), daemon=True) for future in started]
        for thread in self._threads:
            thread.start()
        try:
            for future in started:
                future.result()
        except BaseException:
            self.close()
            raise

    def judge(self, function: int, items: Sequence[Item]) -> Future[Judgements]:
        """One judgement an item, in order, by one of the functions. Waits where too many wait already.

        Responses that take long are shared out among the processes, except where one call judges all of them.
        """
        pieces = self._pieces(function, tuple(items))
        return _joined([self._put(function, piece) for piece in pieces])

    def convention(self, function: int) -> Convention:
        """How one of the functions is called: never AUTO."""
        return self._living[0].convention(function)

    def close(self) -> None:
        """Kill every process, also under a call that hangs. Who waits for an answer is told."""
        with self._work:
            self._closed = True
            left, living = list(self._waiting), list(self._living)
            self._waiting.clear()
            self._work.notify_all()
            self._room.notify_all()
        for job in left:
            job.answer.set_exception(self._is_closed())
        for process in living:
            process.interrupt()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _pieces(self, function: int, items: tuple[Item, ...]) -> list[tuple[Item, ...]]:
        together = any(process.judges_together(function) for process in self._living[:1])
        size = len(items) if together or not self._item_s[function] else int(JOB_S / self._item_s[function])
        size = max(1, min(size, len(items)))
        return [items[start : start + size] for start in range(0, len(items), size)] or [()]

    def _put(self, function: int, items: tuple[Item, ...]) -> Future[Judgements]:
        job = _Job(function=function, items=items, answer=Future())
        with self._room:
            self._room.wait_for(lambda: self._closed or len(self._waiting) < self._most_waiting)
            if self._closed:
                raise self._is_closed()
            self._waiting.append(job)
            self._work.notify()
        return job.answer

    def _next(self) -> _Job | None:
        with self._work:
            self._work.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            job = self._waiting.popleft()
            self._room.notify()
            return job

    def _serve(self, started: Future[None]) -> None:
        """One process, and the jobs it is given, until the pool is closed."""
        try:
            process = RewardProcess(self._specs, self._limits)
        except BaseException as error:  # handed to the thread that waits in __init__
            started.set_exception(error)
            return
        with contextlib.closing(process):
            with self._work:
                self._living.append(process)
            started.set_result(None)
            while (job := self._next()) is not None:
                self._do(process, job)

    def _do(self, process: RewardProcess, job: _Job) -> None:
        begun = time.perf_counter()
        try:
            judgements = process.judge(job.function, job.items)
        except BaseException as error:  # handed to whoever waits for the answer, in another thread
            job.answer.set_exception(self._is_closed() if self._closed else error)
            return
        own_s = (time.perf_counter() - begun) / max(1, len(job.items))
        self._item_s[job.function] = MEMORY * self._item_s[job.function] + (1 - MEMORY) * own_s
        job.answer.set_result(judgements)
        with contextlib.suppress(RewardError, ValueError):  # told to the next job; or the pool was closed
            process.revive()

    def _is_closed(self) -> ValueError:
        return ValueError(f"the processes of reward {', '.join(spec.source.spec for spec in self._specs)} are closed")


def _joined(parts: Sequence[Future[Judgements]]) -> Future[Judgements]:
    """All answers in one, in order; the first exception where there is one."""
    if len(parts) == 1:
        return parts[0]
    whole: Future[Judgements] = Future()
    lock, missing = threading.Lock(), len(parts)

    def count(_: Future[Judgements]) -> None:
        nonlocal missing
        with lock:
            missing -= 1
            if missing:
                return
        try:
            whole.set_result(tuple(judgement for part in parts for judgement in part.result()))
        except BaseException as error:  # of whatever process judged a part: for whoever waits for the whole
            whole.set_exception(error)

    for part in parts:
        part.add_done_callback(count)
    return whole
