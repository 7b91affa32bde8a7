"""Processes that judge, kept warm, and the threads that speak to them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from queue import Queue
from threading import Thread

from rewards.item import Item
from rewards.score import Judgement
from rewards.spec import RewardSpec
from workers.scoring import RewardProcess
from workers.scoring_child import Limits

WAITING_PER_PROCESS = 2
"""Jobs that wait for each process; who brings more waits, too."""


class RewardPool:
    """Some processes, each with every function of the run imported. Any thread may ask."""

    def __init__(self, specs: Sequence[RewardSpec], limits: Limits, *, processes: int) -> None:
        """Raises RewardError where a function cannot be used as configured."""
        self._specs, self._limits = tuple(specs), limits
        self._jobs: Queue[tuple[Future[tuple[Judgement, ...]], int, Sequence[Item]] | None]
        self._jobs = Queue(maxsize=WAITING_PER_PROCESS * processes)
        started: list[Future[None]] = [Future() for _ in range(processes)]
        self._threads = [Thread(target=self._serve, args=(future,), daemon=True) for future in started]
        for thread in self._threads:
            thread.start()
        for future in started:
            future.result()

    def judge(self, function: int, items: Sequence[Item]) -> Future[tuple[Judgement, ...]]:
        """One judgement an item, in order, by one of the functions. Waits where too many wait already."""
        answer: Future[tuple[Judgement, ...]] = Future()
        self._jobs.put((answer, function, items))
        return answer

    def close(self) -> None:
        """Kill every process, when it is done with the job it is on."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _serve(self, started: Future[None]) -> None:
        """One process, and the jobs it is given, until the pool is closed."""
        try:
            process = RewardProcess(self._specs, self._limits)
        except BaseException as error:  # handed to the thread that waits in __init__
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while (job := self._jobs.get()) is not None:
                answer, function, items = job
                try:
                    answer.set_result(process.judge(function, items))
                except BaseException as error:  # handed to whoever waits for the answer, in another thread
                    answer.set_exception(error)
        finally:
            process.close()
