"""One rollout engine in a thread of its own: commands go in, finished groups come out.

The thread owns the engine. Everything that touches it (new requests, weights, sleep) is a command that waits in a queue
until the moment between two decoding steps, so no lock guards the engine and no request sees half a set of weights.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Never, Protocol, TypeVar

import numpy as np

from workers.records import (
    Completion,
    Group,
    GroupRequest,
    Rollout,
    Sampling,
    WeightManifest,
    WeightReceipt,
)

Answer = TypeVar("Answer")

COME_TOGETHER_S = 0.005
"""Between the calls of groups that are asked for at once, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One response to sample."""

    id: str
    token_ids: tuple[int, ...]
    seed: int
    sampling: Sampling


class RolloutEngine(Protocol):
    """What vLLM and transformers both can do. Called from one thread only."""

    def add(self, request: CompletionRequest) -> None: ...

    def step(self) -> Sequence[tuple[str, Completion]]:
        """Decode a little; return what finished, by request id."""

    def is_busy(self) -> bool: ...

    def abort(self, request_id: str) -> int:
        """Forget a request that has not finished. Returns the tokens that were written of it."""

    def load_weights(self, manifest: WeightManifest) -> WeightReceipt:
        """Serve these weights from the next step on. Raises WeightSyncError when they did not arrive as sent."""

    def sleep(self) -> None:
        """Give the device's memory back; weights and caches are gone."""

    def wake(self) -> None:
        """Take the memory again. Weights must be loaded before the next request."""

    def decode(self, token_ids: Sequence[int] | np.ndarray, *, show_special: bool) -> str:
        """The text of tokens, special ones left out or shown."""


class CutOff(Exception):
    """The group was not waited for."""


@dataclass(slots=True)
class _PendingGroup:
    """A group whose siblings are still being decoded."""

    request: GroupRequest
    future: Future[Group]
    rollouts: dict[int, Rollout] = field(default_factory=dict)


class _BrokenEngine:
    """Stands in for an engine that failed: whoever asks it for anything gets its error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, verb: str) -> Never:
        raise self._error


class RolloutWorker:
    """Serves one engine. A plain class: it needs Ray only to live in a process of its own."""

    def __init__(self, make_engine: Callable[[], RolloutEngine], *, max_running: int) -> None:
        """`make_engine` runs in the worker's thread. Raises what it raises.

        The engine is handed `max_running` requests and the next one when one of them has ended, so each begins under
        the weights that the engine then serves.
        """
        self._commands: queue.SimpleQueue[Callable[[RolloutEngine], None] | None] = queue.SimpleQueue()
        self._max_running = max_running
        self._waiting: deque[tuple[_PendingGroup, int]] = deque()
        """Groups with the samples that the engine was not handed yet."""
        self._running: dict[str, tuple[_PendingGroup, int]] = {}
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, args=(make_engine, started), daemon=True, name="rollout")
        self._thread.start()
        started.result()

    def generate(self, request: GroupRequest) -> Future[Group]:
        """All responses of a group, in sample order, when the last of them has ended."""
        group = _PendingGroup(request=request, future=Future())

        self._commands.put(lambda engine: self._waiting.extend((group, n) for n in range(_responses(request))))
        return group.future

    def cut_off(self, draws: Collection[int]) -> Future[int]:
        """Stop working on the groups of these draws: their futures raise CutOff. Returns the tokens that were written
        of them; of those that are ready already, none."""

        def cut(engine: RolloutEngine) -> int:
            late = [group for group in self._unfinished() if group.request.draw in draws]
            return self._abandon(engine, late, CutOff("the group was cut off"))

        return self._between_steps(cut)

    def load_weights(self, manifest: WeightManifest) -> Future[WeightReceipt]:
        return self._between_steps(lambda engine: engine.load_weights(manifest))

    def sleep(self) -> Future[None]:
        """What has not ended by then never will: its futures raise CutOff."""

        def fall_asleep(engine: RolloutEngine) -> None:
            self._abandon(engine, self._unfinished(), CutOff("the engine was put to sleep"))
            engine.sleep()

        return self._between_steps(fall_asleep)

    def wake(self) -> Future[None]:
        return self._between_steps(lambda engine: engine.wake())

    def close(self) -> None:
        self._commands.put(None)
        self._thread.join()

    def _between_steps(self, command: Callable[[RolloutEngine], Answer]) -> Future[Answer]:
        future: Future[Answer] = Future()

        def run(engine: RolloutEngine) -> None:
            try:
                future.set_result(command(engine))
            except Exception as error:  # handed to whoever waits for the answer, in another thread
                future.set_exception(error)

        self._commands.put(run)
        return future

    def _fill(self, engine: RolloutEngine) -> None:
        """Hand over what waits, as far as there are slots."""
        while self._waiting and len(self._running) < self._max_running:
            group, sample = self._waiting.popleft()
            try:
                self._add(engine, group, sample)
            except Exception as error:  # handed to whoever waits for the group, in another thread
                self._abandon(engine, [group], error)

    def _add(self, engine: RolloutEngine, group: _PendingGroup, sample: int) -> None:
        request = group.request
        key = f"{request.draw}/{sample}/{id(group)}"
        engine.add(
            CompletionRequest(
                id=key,
                token_ids=request.prompt.token_ids,
                seed=request.sample_seed(sample),
                sampling=request.sampling if sample < request.num_samples else _greedy(request.sampling),
            )
        )
        self._running[key] = (group, sample)

    def _serve(self, make_engine: Callable[[], RolloutEngine], started: Future[None]) -> None:
        try:
            engine = make_engine()
        except BaseException as error:  # handed to the thread that waits in __init__
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            self._work(engine)
        except Exception as error:  # a broken engine fails everybody who waits for it, and whoever comes later
            self._fail_all(error)
            while (command := self._commands.get()) is not None:
                command(_BrokenEngine(error))
                self._fail_all(error)

    def _work(self, engine: RolloutEngine) -> None:
        """Commands, a step, what it finished; until the worker is closed."""
        while True:
            with suppress(queue.Empty):
                while True:
                    command = self._next_command(engine)
                    if command is None:
                        return
                    command(engine)
            self._fill(engine)
            for key, completion in engine.step():
                self._finish(engine, key, completion)

    def _next_command(self, engine: RolloutEngine) -> Callable[[RolloutEngine], None] | None:
        """Raises queue.Empty when it is time for a step: a busy engine takes what is already there, and one that is
        about to begin gives the others a moment to come."""
        if engine.is_busy():
            return self._commands.get_nowait()
        return self._commands.get(timeout=COME_TOGETHER_S if self._waiting else None)

    def _finish(self, engine: RolloutEngine, key: str, completion: Completion) -> None:
        group, sample = self._running.pop(key)
        request = group.request
        group.rollouts[sample] = Rollout(
            prompt=request.prompt,
            draw=request.draw,
            sample=sample,
            text=engine.decode(completion.token_ids, show_special=False),
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            spans=completion.spans,
            stop=completion.stop,
        )
        if len(group.rollouts) == _responses(request):
            siblings = tuple(group.rollouts[sample] for sample in range(request.num_samples))
            greedy = group.rollouts.get(request.num_samples)
            prompt_text = engine.decode(request.prompt.token_ids, show_special=True)
            group.future.set_result(Group(rollouts=siblings, greedy=greedy, prompt_text=prompt_text))

    def _unfinished(self) -> list[_PendingGroup]:
        return list({id(group): group for group, _ in (*self._running.values(), *self._waiting)}.values())

    def _abandon(self, engine: RolloutEngine, groups: Sequence[_PendingGroup], error: Exception) -> int:
        """Work on these groups no longer, and tell whoever waits for them. Returns the tokens written of them."""
        gone = {id(group) for group in groups}
        keys = [key for key, (group, _) in self._running.items() if id(group) in gone]
        ended = [rollout for group in groups for rollout in group.rollouts.values()]
        num_tokens = sum(len(rollout.token_ids) for rollout in ended) + sum(engine.abort(key) for key in keys)
        for key in keys:
            del self._running[key]
        self._waiting = deque(own for own in self._waiting if id(own[0]) not in gone)
        for group in groups:
            group.future.set_exception(error)
        return num_tokens

    def _fail_all(self, error: Exception) -> None:
        for group in self._unfinished():
            group.future.set_exception(error)
        self._running.clear()
        self._waiting.clear()


def _responses(request: GroupRequest) -> int:
    """The greedy one, where it is asked for, comes after the siblings."""
    return request.num_samples + request.with_greedy


def _greedy(sampling: Sampling) -> Sampling:
    return replace(sampling, temperature=0.0)
