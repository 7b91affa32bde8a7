"""Engines and trainers that sleep for as long as a plan says: what a process of theirs has to import, and no more."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workers.records import Completion, Span, Stop, WeightManifest, WeightReceipt
from workers.rollout_actor import RolloutActor
from workers.rollout_worker import CompletionRequest, RolloutWorker
from workers.tally import UpdateReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the models take, in seconds, and how long the responses are."""

    decode_step_s: float
    """For one token of every running response, however many run."""
    update_s: float
    swap_s: float
    """For an engine to take new weights."""
    lengths: tuple[tuple[int, ...], ...]
    """Tokens of each draw's responses; the next draw after the last one is as the first."""

    def length(self, draw: int, sample: int) -> int:
        return self.lengths[draw % len(self.lengths)][sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A time in which somebody worked: a bar of a timeline."""

    who: str
    what: str
    start_s: float
    """By the machine's clock, which all processes share."""
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTold:
    """What an engine saw."""

    decoded_tokens: int
    pauses_s: tuple[float, ...]
    """From the end of a step to the end of the next one, where new weights came between and responses ran."""
    swaps: tuple[Stretch, ...]
    steps: tuple[tuple[float, float, int], ...]
    """When each began and ended, and how many responses ran."""


@dataclass(slots=True)
class _Running:
    request: CompletionRequest
    length: int
    versions: list[int]


class StubEngine:
    """Sleeps for each step, and ends every response at its planned length."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: dict[str, _Running] = {}

    def begin(self, plan: Plan) -> None:
        """Another run, of which nothing is known yet."""
        self._plan, self._version = plan, 0
        self._decoded = 0
        self._stepped_s = time.monotonic()
        self._swapped = False
        self._pauses_s: list[float] = []
        self._swaps: list[Stretch] = []
        self._steps: list[tuple[float, float, int]] = []

    def add(self, request: CompletionRequest) -> None:
        draw, sample, *_ = request.id.split("/")
        self._running[request.id] = _Running(request, self._plan.length(int(draw), int(sample)), [])

    def is_busy(self) -> bool:
        return bool(self._running)

    def abort(self, request_id: str) -> int:
        return len(self._running.pop(request_id).versions)

    def step(self) -> list[tuple[str, Completion]]:
        began = time.monotonic()
        time.sleep(self._plan.decode_step_s)
        running = len(self._running)
        self._decoded += running
        for own in self._running.values():
            own.versions.append(self._version)
        done = [key for key, own in self._running.items() if len(own.versions) == own.length]
        now = time.monotonic()
        if self._swapped:
            self._pauses_s.append(now - self._stepped_s)
        self._swapped, self._stepped_s = False, now
        self._steps.append((began, now, running))
        return [(key, _completion(self._running.pop(key))) for key in done]

    def load_weights(self, manifest: WeightManifest) -> WeightReceipt:
        began = time.monotonic()
        time.sleep(self._plan.swap_s)
        self._version, self._swapped = manifest.version, bool(self._running)
        self._swaps.append(Stretch(who=self._name, what="new weights", start_s=began, end_s=time.monotonic()))
        return WeightReceipt(version=manifest.version, checksum=manifest.checksum, num_bytes=manifest.num_bytes)

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def decode(self, token_ids: Sequence[int] | np.ndarray, *, show_special: bool) -> str:
        return ""

    def told(self) -> EngineTold:
        return EngineTold(
            decoded_tokens=self._decoded,
            pauses_s=tuple(self._pauses_s),
            swaps=tuple(self._swaps),
            steps=tuple(self._steps),
        )


def _completion(own: _Running) -> Completion:
    versions = np.array(own.versions)
    starts = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist(), len(versions)]
    return Completion(
        token_ids=np.ones(own.length, dtype=np.int32),
        logprobs=np.zeros(own.length, dtype=np.float32),
        spans=tuple(
            Span(start=start, end=end, sampled=True, version=int(versions[start]))
            for start, end in itertools.pairwise(starts)
        ),
        stop=Stop.END,
    )


class StubRolloutActor(RolloutActor):
    """The rollout actor and its worker, around such an engine."""

    def __init__(self, name: str, max_running: int) -> None:
        self._engine = StubEngine(name)
        self._worker = RolloutWorker(lambda: self._engine, max_running=max_running)

    async def begin(self, plan: Plan) -> None:
        self._engine.begin(plan)

    async def told(self) -> EngineTold:
        return self._engine.told()


class StubPolicy:
    """Learns nothing, for as long as is planned."""

    def __init__(self, name: str) -> None:
        self._name, self._tokens = name, 0

    def begin(self, plan: Plan) -> None:
        self._plan, self._stretches = plan, []

    def look(self, share: Sequence[Any], objective: object, temperature: float, *said: Any) -> np.ndarray:
        """The tokens of its rows, as a trainer would count them."""
        _, _, *groups = said
        rollouts = {(own.draw, own.sample): own for group in groups for own in group.rollouts}
        rows = [(row.draw, row.sample) for update in share for row in update.rows]
        self._tokens = sum(rollouts[row].action_tokens() for row in rows)
        return np.zeros(len(rows))

    def credit(self, advantages: np.ndarray, objective: object, state: object) -> Mapping[str, float]:
        return {}

    def update(self, objective: object, state: object) -> UpdateReport:
        began = time.monotonic()
        time.sleep(self._plan.update_s)
        self._stretches.append(Stretch(who=self._name, what="update", start_s=began, end_s=time.monotonic()))
        return UpdateReport(contributions={}, maxima={}, action_tokens=self._tokens, skipped_updates=0)

    def publish(self, version: int) -> WeightManifest:
        return WeightManifest(version=version, path="", entries=(), checksum=f"version {version}")

    def save(self, folder: Path) -> tuple[()]:
        """There is nothing to keep."""
        return ()

    def told(self) -> tuple[Stretch, ...]:
        return tuple(self._stretches)
