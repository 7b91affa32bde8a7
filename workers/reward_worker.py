"""Judges groups of rollouts: a plain class, which becomes a Ray actor where its resources are known."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rewards.load import RewardSource, check_columns
from workers.records import GeneratedGroup, Group, GroupSummary, ScoredRollout
from workers.scoring import RewardProcess


class RewardWorker:
    """A reward function in a killable process, spoken to in records."""

    def __init__(self, source: RewardSource, arguments: Mapping[str, object], timeout_s: float) -> None:
        self._arguments = dict(arguments)
        self._process = RewardProcess(source, arguments, timeout_s)

    def score(self, generated: GeneratedGroup) -> tuple[Group, GroupSummary]:
        """The siblings of one draw, judged, and what the driver needs to know of them."""
        rollouts = (*generated.rollouts, *((generated.greedy,) if generated.greedy else ()))
        prompt, draw = rollouts[0].prompt, rollouts[0].draw
        draws = sorted({rollout.draw for rollout in rollouts})
        if len(draws) > 1:
            raise ValueError(f"a group holds the rollouts of one draw, not of draws {draws}")
        check_columns(self._arguments, prompt.row)
        started = time.perf_counter()
        judgements = self._process.judge([(rollout.text, prompt.answer, prompt.row) for rollout in rollouts])
        judging_s = time.perf_counter() - started
        scored = tuple(
            ScoredRollout(rollout=rollout, judgement=judgement)
            for rollout, judgement in zip(rollouts, judgements, strict=True)
        )
        siblings = len(generated.rollouts)
        greedy = scored[siblings] if generated.greedy else None
        group = Group(prompt=prompt, draw=draw, rollouts=scored[:siblings], greedy=greedy)
        return group, group.summary(judging_s=judging_s)

    def close(self) -> None:
        """Kill the reward's process."""
        self._process.close()
