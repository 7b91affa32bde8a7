"""Keeps groups in flight, and hands them out scored.

The ledger of draws is the only truth about what was asked for: a draw is a position in the endless, shuffled sequence
of prompts. With a staleness of 0 a step admits exactly the groups that it learns from, and takes them in draw order, so
what a run learns from does not depend on which engine was faster.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engine.algorithms.base import Algorithm
from engine.algorithms.dynamic_sampling import Exhausted, Surplus
from rewards.score import Failure
from workers.config import RewardConfig, RolloutConfig
from workers.records import GroupRequest, GroupSummary, Prompt, Sampling
from workers.stopped import RunStopped

if TYPE_CHECKING:
    from ray import ObjectRef

    from workers.team import Workers


class RewardsFailed(RunStopped):
    """Too many responses of a step could not be judged."""


class NotEnoughGroups(RunStopped):
    """Dynamic sampling reached its limit before it had what a step needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenGroup:
    """A judged group: its numbers, and where its tokens are."""

    summary: GroupSummary
    group: ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """A group that dynamic sampling did not keep."""

    taken: TakenGroup
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a step learns from, in draw order, and why other groups were passed over."""

    groups: tuple[TakenGroup, ...]
    dropped: Counter[str]
    drawn: int
    """Groups that were judged for this step."""
    carried: int
    """Of `groups`: left over from the step before."""
    passed_over: tuple[PassedOver, ...]
    failures: tuple[Failure, ...]
    """Of all groups that were judged for this step."""


def ask(workers: Workers, request: GroupRequest) -> tuple[ObjectRef, ObjectRef]:
    """Sample a group and judge it, each as soon as it can be: references to the group and to its summary."""
    group = workers.rollout.generate(request)
    return group, workers.reward.score(group, draw=request.draw)


class Ledger:
    """Which prompt each draw is: every epoch is a shuffle of its own, keyed by (seed, epoch)."""

    def __init__(self, *, num_prompts: int, seed: int, next_draw: int) -> None:
        self._num_prompts, self._seed = num_prompts, seed
        self._epoch, self._order = -1, np.arange(0)
        self.next_draw = next_draw
        """The first draw that was not admitted."""

    def admit(self) -> tuple[int, int]:
        """The next draw, and the number of its prompt."""
        draw = self.next_draw
        self.next_draw += 1
        epoch, position = divmod(draw, self._num_prompts)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self._seed, epoch)).permutation(self._num_prompts)
        return draw, int(self._order[position])


@dataclass(frozen=True, slots=True, kw_only=True)
class _InFlight:
    group: ObjectRef
    summary: ObjectRef


@dataclass(slots=True)
class _Harvest:
    """What a step has so far."""

    step: int
    """From 1."""
    kept: list[TakenGroup]
    passed_over: list[TakenGroup] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    judged: int = 0
    """Groups, kept and passed over."""


class RolloutStream:
    """Scored groups, as many as asked for, within a bound on their staleness."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        workers: Workers,
        *,
        rollout: RolloutConfig,
        reward: RewardConfig,
        algorithm: Algorithm,
        seed: int,
        next_draw: int,
        first_version: int,
        list_failures: Callable[[int, GroupSummary], None],
    ) -> None:
        """`next_draw`: where the run's ledger stands; `first_version`: of the first weights that are sampled from;
        `list_failures` is told of each group with responses that could not be judged, and its step (from 1)."""
        self._list_failures = list_failures
        self._prompts, self._workers, self._algorithm, self._seed = prompts, workers, algorithm, seed
        self._rollout, self._reward = rollout, reward
        self._sampling = Sampling(temperature=rollout.temperature, max_tokens=rollout.max_response_tokens)
        self._ledger = Ledger(num_prompts=len(prompts), seed=seed, next_draw=next_draw)
        self._wanted = first_version * rollout.prompts_per_step
        """Groups that the steps so far were to learn from; fewer, where dynamic sampling ended early."""
        self._in_flight: deque[_InFlight] = deque()
        self._surplus: list[TakenGroup] = []

    @property
    def next_draw(self) -> int:
        return self._ledger.next_draw

    def forget_surplus(self) -> None:
        """A checkpoint does not hold groups that were left over: the run that goes on after it, and the run that never
        stopped, both start the next step without them."""
        self._surplus.clear()

    def take(self, *, version: int) -> Taken:
        """One step's groups, sampled by weights no more than `max_staleness` versions older than `version`.

        Raises RewardsFailed, and NotEnoughGroups when dynamic sampling finds too few groups that teach anything.
        """
        size = self._rollout.prompts_per_step
        fresh = [item for item in self._surplus if item.summary.version >= version - 1]
        harvest = _Harvest(step=version + 1, kept=fresh[:size])
        stale = len(self._surplus) - len(fresh)
        self._surplus = fresh[size:]
        carried = len(harvest.kept)
        self._admit(version, harvest)
        while len(harvest.kept) < size and self._in_flight:
            self._gather(harvest)
            self._admit(version, harvest)
        if self._rollout.max_staleness == 0:
            # Weights change after this step: nothing may be half-way through.
            while self._in_flight:
                self._gather(harvest)
        self._wanted += size
        if self._algorithm.dynamic_sampling.surplus is Surplus.CARRY:
            self._surplus += harvest.kept[size:]
        else:
            harvest.dropped["surplus"] += len(harvest.kept[size:])
        if stale:
            harvest.dropped["stale"] += stale
        return Taken(
            groups=self._completed(harvest),
            dropped=+harvest.dropped,
            drawn=harvest.judged,
            carried=carried,
            passed_over=tuple(
                PassedOver(taken=item, reason=str(self._algorithm.keep(item.summary))) for item in harvest.passed_over
            ),
            failures=tuple(harvest.failures),
        )

    def _gather(self, harvest: _Harvest) -> None:
        """Wait for the oldest draw, and keep it or pass it over."""
        oldest = self._in_flight.popleft()
        [summary] = self._workers.reward.wait([oldest.summary], verb="score a group")
        taken = TakenGroup(summary=summary, group=oldest.group)
        harvest.judged += 1
        failures = summary.failures()
        harvest.failures += failures.values()
        if failures:
            self._list_failures(harvest.step, summary)
        groups = max(harvest.judged, self._rollout.prompts_per_step)
        responses = self._rollout.responses_per_prompt + self._algorithm.needs.greedy
        allowed = int(self._reward.max_failure_fraction * groups * responses)
        if len(harvest.failures) > allowed:
            raise RewardsFailed(_told(harvest.failures, allowed))
        reason = self._algorithm.keep(summary)
        if reason is None:
            harvest.kept.append(taken)
        else:
            harvest.passed_over.append(taken)
            harvest.dropped[reason] += 1

    def _admit(self, version: int, harvest: _Harvest) -> None:
        """Ask for as many groups as may be in flight without any of them growing too old, and a few ahead."""
        size, dynamic = self._rollout.prompts_per_step, self._algorithm.dynamic_sampling
        missing = max(0, size - len(harvest.kept))
        room = (self._rollout.max_staleness + version + 1) * size - self._wanted - len(harvest.kept)
        room += math.ceil((dynamic.draw_ahead - 1) * missing) if dynamic.enabled else 0
        if dynamic.enabled and dynamic.max_batches:
            room = min(room, dynamic.max_batches * size - harvest.judged)
        while len(self._in_flight) < room:
            draw, prompt = self._ledger.admit()
            request = GroupRequest(
                prompt=self._prompts[prompt],
                draw=draw,
                num_samples=self._rollout.responses_per_prompt,
                seed=self._seed,
                sampling=self._sampling,
                with_greedy=self._algorithm.needs.greedy,
            )
            group, summary = ask(self._workers, request)
            self._in_flight.append(_InFlight(group=group, summary=summary))

    def _completed(self, harvest: _Harvest) -> tuple[TakenGroup, ...]:
        """The step's groups in draw order; what dynamic sampling could not find, its settings say how to do without."""
        size, dynamic = self._rollout.prompts_per_step, self._algorithm.dynamic_sampling
        groups = harvest.kept[:size]
        missing = size - len(groups)
        if missing and dynamic.exhausted is Exhausted.FILL:
            for item in harvest.passed_over[:missing]:
                groups.append(item)
                harvest.dropped[self._algorithm.keep(item.summary)] -= 1
            del harvest.passed_over[:missing]
        elif missing and (dynamic.exhausted is Exhausted.ERROR or not groups):
            raise NotEnoughGroups(
                f"of {harvest.judged} groups only {len(groups)} teach anything, and the step needs {size} "
                f"({', '.join(f'{count} {reason}' for reason, count in harvest.dropped.items())}). Choose prompts that "
                "the policy answers now right, now wrong, or set algo.dynamic_sampling.max_batches higher or "
                "algo.dynamic_sampling.exhausted=fill"
            )
        return tuple(sorted(groups, key=lambda item: item.summary.draw))


def _told(failures: Sequence[Failure], most: int) -> str:
    kinds = ", ".join(f"{count} x {kind.value}" for kind, count in Counter(f.kind for f in failures).items())
    return (
        f"{len(failures)} responses of one step could not be judged ({kinds}); reward.max_failure_fraction allows "
        f"{most}. The first reason:\n{failures[0].reason}"
    )
