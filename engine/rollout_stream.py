"""Keeps groups in flight, and hands them out scored.

The ledger of draws is the only truth about what was asked for: a draw is a position in the endless, shuffled sequence
of prompts. With a staleness of 0 a step admits exactly the groups that it learns from, and takes them in draw order, so
what a run learns from does not depend on which engine was faster.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewards.score import Failure
from workers.config import RewardConfig, RolloutConfig
from workers.records import GroupRequest, GroupSummary, Prompt, Sampling
from workers.stopped import RunStopped

if TYPE_CHECKING:
    from ray import ObjectRef

    from workers.team import Workers

Keep = Callable[[GroupSummary], str | None]


class RewardsFailed(RunStopped):
    """Too many responses of a step could not be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenGroup:
    """A scored group: its numbers, and where its tokens are."""

    summary: GroupSummary
    group: ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a step learns from, in draw order, and why other groups were passed over."""

    groups: tuple[TakenGroup, ...]
    dropped: Counter[str]


def ask(workers: Workers, request: GroupRequest) -> tuple[ObjectRef, ObjectRef]:
    """Sample a group and judge it, each as soon as it can be: references to the scored group and to its summary."""
    return workers.reward.score(workers.rollout.generate(request), draw=request.draw)


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


class RolloutStream:
    """Scored groups, as many as asked for, within a bound on their staleness."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        workers: Workers,
        *,
        rollout: RolloutConfig,
        reward: RewardConfig,
        keep: Keep,
        seed: int,
        next_draw: int,
        accepted: int,
    ) -> None:
        """`accepted`: groups that the run has learned from so far; `next_draw`: where its ledger stands."""
        self._prompts, self._workers, self._keep, self._seed = prompts, workers, keep, seed
        self._rollout = rollout
        self._sampling = Sampling(temperature=rollout.temperature, max_tokens=rollout.max_response_tokens)
        self._ledger = Ledger(num_prompts=len(prompts), seed=seed, next_draw=next_draw)
        self._accepted = accepted
        self._in_flight: deque[_InFlight] = deque()
        step_size = rollout.prompts_per_step * rollout.responses_per_prompt
        self._most_failures = int(reward.max_failed_share * step_size)

    @property
    def next_draw(self) -> int:
        return self._ledger.next_draw

    def take(self, *, version: int) -> Taken:
        """One step's groups, sampled by weights no more than `max_staleness` versions older than `version`."""
        groups: list[TakenGroup] = []
        dropped: Counter[str] = Counter()
        failures: list[Failure] = []
        self._admit(version)
        while len(groups) < self._rollout.prompts_per_step:
            oldest = self._in_flight.popleft()
            [summary] = self._workers.reward.wait([oldest.summary], verb="score a group")
            failures += summary.failures
            if len(failures) > self._most_failures:
                raise RewardsFailed(_told(failures, self._most_failures))
            reason = self._keep(summary)
            if reason is None:
                groups.append(TakenGroup(summary=summary, group=oldest.group))
                self._accepted += 1
            else:
                dropped[reason] += 1
            self._admit(version)
        return Taken(groups=tuple(groups), dropped=dropped)

    def _admit(self, version: int) -> None:
        """Ask for as many groups as may be in flight without any of them growing too old."""
        allowed = (self._rollout.max_staleness + version + 1) * self._rollout.prompts_per_step
        while self._accepted + len(self._in_flight) < allowed:
            draw, prompt = self._ledger.admit()
            request = GroupRequest(
                prompt=self._prompts[prompt],
                draw=draw,
                num_samples=self._rollout.responses_per_prompt,
                seed=self._seed,
                sampling=self._sampling,
            )
            group, summary = ask(self._workers, request)
            self._in_flight.append(_InFlight(group=group, summary=summary))


def _told(failures: Sequence[Failure], most: int) -> str:
    kinds = ", ".join(f"{count} x {kind.value}" for kind, count in Counter(f.kind for f in failures).items())
    return (
        f"{len(failures)} responses of one step could not be judged ({kinds}); reward.max_failed_share allows {most}. "
        f"The first reason:\n{failures[0].reason}"
    )
