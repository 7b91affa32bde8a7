"""Keeps groups in flight, and hands them out scored.

Groups are taken in draw order, so what a run learns from does not depend on which engine was faster, and no response is
passed over because it is long. With a staleness of 0 a step asks for exactly the groups that it learns from; above it
the engines already work on the next steps' groups while the trainers learn from this one's. Oversampling is the
exception: it takes what is ready first, and cuts the rest off.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.algorithms.base import Algorithm
from engine.algorithms.dynamic_sampling import Exhausted, Surplus
from engine.ledger import Draw, Ledger
from engine.shuffle import Shuffle
from rewards.score import Failure
from workers.config import RewardConfig, RolloutConfig
from workers.records import GroupRequest, GroupSummary, Prompt, Sampling
from workers.stopped import RunStopped

if TYPE_CHECKING:
    from ray import ObjectRef

    from workers.team import Workers

SCORE = "score a group"


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

    version: int
    """Of the policy that learns from it."""
    groups: tuple[TakenGroup, ...]
    dropped: Counter[str]
    drawn: int
    """Groups that were judged for this step."""
    carried: int
    """Of `groups`: left over from the step before."""
    cut_tokens: int
    """That were written of groups that oversampling cut off."""
    passed_over: tuple[PassedOver, ...]
    failures: tuple[Failure, ...]
    """Of all groups that were judged for this step."""


def ask(workers: Workers, request: GroupRequest) -> tuple[ObjectRef, ObjectRef]:
    """Sample a group and judge it, each as soon as it can be: references to the group and to its summary."""
    group = workers.rollout.generate(request)
    return group, workers.reward.score(group, draw=request.draw)


@dataclass(frozen=True, slots=True, kw_only=True)
class _InFlight:
    group: ObjectRef
    summary: ObjectRef


@dataclass(slots=True)
class _Harvest:
    """What a step has so far."""

    version: int
    """Of the policy that learns from it."""
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
        carried: Sequence[TakenGroup],
        steps: int,
        list_failures: Callable[[int, GroupSummary], None],
    ) -> None:
        """`next_draw`: where the run's ledger stands; `carried`: groups that its last step left over; `steps`: of the
        whole run, beyond which nothing is asked for; `list_failures` is told of each group with responses that could
        not be judged, and its step (from 1)."""
        self._list_failures, self._steps = list_failures, steps
        self._prompts, self._workers, self._algorithm, self._seed = prompts, workers, algorithm, seed
        self._rollout, self._reward = rollout, reward
        self._sampling = Sampling(temperature=rollout.temperature, max_tokens=rollout.max_response_tokens)
        self._ledger = Ledger(
            Shuffle(num_rows=len(prompts), seed=seed),
            next_draw=next_draw,
            groups_per_step=rollout.prompts_per_step,
            max_staleness=rollout.max_staleness,
        )
        self._in_flight: dict[int, _InFlight] = {}
        """What the ledger says is in flight."""
        self._surplus = list(carried)
        self._lengths: dict[int, float] = {}
        """Mean response tokens of each prompt that was answered in this process, when it was answered last."""

    @property
    def next_draw(self) -> int:
        """Where a run that goes on from here asks again: what is in flight is not part of a checkpoint."""
        return self._ledger.next_draw

    @property
    def carried(self) -> tuple[TakenGroup, ...]:
        """Groups that were left over for the next step."""
        return tuple(self._surplus)

    def take(self, *, version: int) -> Taken:
        """One step's groups, sampled by weights no more than `max_staleness` versions older than `version`.

        Raises RewardsFailed, NotEnoughGroups when dynamic sampling finds too few groups that teach anything, and
        WrongWeights when an engine did not serve what it should.
        """
        size, oversamples = self._rollout.prompts_per_step, self._rollout.oversampling > 1
        fresh = [item for item in self._surplus if item.summary.oldest_version >= version - 1]
        harvest = _Harvest(version=version, kept=fresh[:size])
        stale = len(self._surplus) - len(fresh)
        self._surplus = fresh[size:]
        carried = len(harvest.kept)
        self._admit(harvest)
        while len(harvest.kept) < size and self._in_flight and self._left_to_judge(harvest):
            self._gather(self._first_ready() if oversamples else self._ledger.oldest, harvest)
            self._admit(harvest)
        cut_tokens = self._cut_off(harvest) if oversamples else 0
        if self._rollout.max_staleness == 0:
            # Weights change after this step: nothing may be half-way through.
            while self._in_flight:
                self._gather(self._ledger.oldest, harvest)
        if self._algorithm.dynamic_sampling.surplus is Surplus.CARRY:
            self._surplus += harvest.kept[size:]
        else:
            harvest.dropped["surplus"] += len(harvest.kept[size:])
        if stale:
            harvest.dropped["stale"] += stale
        return Taken(
            version=version,
            groups=self._completed(harvest),
            dropped=+harvest.dropped,
            drawn=harvest.judged,
            carried=carried,
            cut_tokens=cut_tokens,
            passed_over=tuple(
                PassedOver(taken=item, reason=str(self._algorithm.keep(item.summary))) for item in harvest.passed_over
            ),
            failures=tuple(harvest.failures),
        )

    def _first_ready(self) -> int:
        """The draw that is judged first, or has been."""
        draws = list(self._in_flight)
        return draws[self._workers.reward.wait_for_one([own.summary for own in self._in_flight.values()], verb=SCORE)]

    def _cut_off(self, harvest: _Harvest) -> int:
        """What oversampling asked for in vain. Returns the tokens that were written of it."""
        late = list(self._in_flight)
        for draw in late:
            del self._in_flight[self._ledger.settle(draw).number]
        harvest.dropped["cut_off"] += len(late)
        return self._workers.rollout.cut_off(late) if late else 0

    def _gather(self, draw: int, harvest: _Harvest) -> None:
        """Wait for a draw, and keep it or pass it over."""
        [summary] = self._workers.reward.wait([self._in_flight[draw].summary], verb=SCORE)
        taken, own = TakenGroup(summary=summary, group=self._in_flight.pop(draw).group), self._ledger.settle(draw)
        self._lengths[own.prompt] = float(summary.length_G.mean())
        harvest.judged += 1
        failures = summary.failures()
        harvest.failures += failures.values()
        if failures:
            self._list_failures(harvest.version + 1, summary)
        groups = max(harvest.judged, self._rollout.prompts_per_step)
        responses = self._rollout.responses_per_prompt + self._algorithm.needs.greedy
        allowed = int(self._reward.max_failure_fraction * groups * responses)
        if len(harvest.failures) > allowed:
            raise RewardsFailed(_told(harvest.failures, allowed))
        self._ledger.check_weights(own, oldest_version=summary.oldest_version, version=harvest.version)
        reason = self._algorithm.keep(summary)
        if reason is None:
            harvest.kept.append(taken)
        else:
            harvest.passed_over.append(taken)
            harvest.dropped[reason] += 1

    def _left_to_judge(self, harvest: _Harvest) -> float:
        """Groups that the step may still look at."""
        dynamic = self._algorithm.dynamic_sampling
        limited = dynamic.enabled and dynamic.max_batches
        return dynamic.max_batches * self._rollout.prompts_per_step - harvest.judged if limited else math.inf

    def _admit(self, harvest: _Harvest) -> None:
        """Ask for as many groups as may be in flight without any of them growing too old, and a few ahead."""
        missing, most = max(0, self._rollout.prompts_per_step - len(harvest.kept)), self._left_to_judge(harvest)
        if self._rollout.max_staleness == 0:
            missing += math.ceil((self._asked_at_once() - 1) * missing)
        room = self._ledger.room(due=int(min(missing, most)), later_steps=self._steps - harvest.version - 1)
        for draw in self._longest_first([self._ledger.admit(version=harvest.version) for _ in range(room)]):
            request = GroupRequest(
                prompt=self._prompts[draw.prompt],
                draw=draw.number,
                num_samples=self._rollout.responses_per_prompt,
                seed=self._seed,
                sampling=self._sampling,
                with_greedy=self._algorithm.needs.greedy,
            )
            group, summary = ask(self._workers, request)
            self._in_flight[draw.number] = _InFlight(group=group, summary=summary)

    def _asked_at_once(self) -> float:
        """As a multiple of what is missing."""
        dynamic = self._algorithm.dynamic_sampling
        return max(self._rollout.oversampling, dynamic.draw_ahead if dynamic.enabled else 1.0)

    def _longest_first(self, draws: list[Draw]) -> list[Draw]:
        """Where engines cannot decode all at once, what was long the last time starts first, so that the last to start
        are short. A prompt that was never answered is taken for an average one."""
        responses = self._rollout.responses_per_prompt + self._algorithm.needs.greedy
        if not self._lengths or len(draws) * responses <= self._rollout.max_running * self._rollout.engines:
            return draws
        average = sum(self._lengths.values()) / len(self._lengths)
        return sorted(draws, key=lambda draw: -self._lengths.get(draw.prompt, average))

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
