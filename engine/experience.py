"""From scored groups to rows on ranks: what each response is worth, who learns from it, and the step's totals.

The driver sees numbers only; the tokens go from where they were made to the rank that learns from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.algorithms.base import Algorithm, Outcomes
from engine.rollout_stream import TakenGroup
from workers.records import Row, Totals, Update
from workers.stopped import RunStopped

if TYPE_CHECKING:
    from ray import ObjectRef


class NothingToLearn(RunStopped):
    """An optimizer step has no response that can be learned from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One batch of rollouts, dealt out. Every sequence has an entry a rank."""

    shares: tuple[tuple[Update, ...], ...]
    groups: tuple[tuple[ObjectRef, ...], ...]
    """The groups that each rank's rows come from."""
    advantage_std: float

    @property
    def action_tokens(self) -> int:
        return sum(update.totals.tokens for update in self.shares[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A judged response."""

    row: Row
    tokens: int
    """Prompt and response: what it costs to learn from it."""
    action_tokens: int


def assign(
    taken: Sequence[TakenGroup], algorithm: Algorithm, *, ranks: int, updates_per_step: int, horizon: int
) -> Assignment:
    """Credit every judged response, split the groups into optimizer steps, and balance each over the ranks.

    Raises NothingToLearn when an optimizer step would have fewer rows than ranks.
    """
    by_group = _credit(taken, algorithm)
    per_update = np.array_split(np.arange(len(taken)), updates_per_step)
    shares: list[list[Update]] = [[] for _ in range(ranks)]
    for number, indices in enumerate(per_update):
        candidates = [candidate for index in indices for candidate in by_group[index]]
        if len(candidates) < ranks:
            raise NothingToLearn(f"optimizer step {number} has {len(candidates)} judged responses for {ranks} ranks")
        totals = Totals(
            tokens=sum(candidate.action_tokens for candidate in candidates),
            sequences=sum(candidate.action_tokens > 0 for candidate in candidates),
            prompts=sum(bool(by_group[index]) for index in indices),
            horizon=horizon,
        )
        for share, dealt in zip(shares, _deal(candidates, ranks), strict=True):
            share.append(Update(rows=tuple(candidate.row for candidate in dealt), totals=totals))
    return Assignment(
        shares=tuple(tuple(share) for share in shares),
        groups=tuple(_groups_of(share, taken) for share in shares),
        advantage_std=float(np.std([candidate.row.advantage for group in by_group for candidate in group])),
    )


def _credit(taken: Sequence[TakenGroup], algorithm: Algorithm) -> list[list[_Candidate]]:
    """Judged responses by group, each with its advantage; statistics see the whole batch."""
    judged = [np.flatnonzero(np.isfinite(item.summary.score_G)) for item in taken]
    advantage_B = algorithm.advantage(
        Outcomes(
            score_B=np.concatenate([item.summary.score_G[own] for item, own in zip(taken, judged, strict=True)]),
            length_B=np.concatenate(
                [item.summary.action_tokens_G[own] for item, own in zip(taken, judged, strict=True)]
            ),
            group_B=np.concatenate(
                [np.full(len(own), item.summary.draw) for item, own in zip(taken, judged, strict=True)]
            ),
        )
    )
    credited = iter(advantage_B)
    return [
        [
            _Candidate(
                row=Row(draw=item.summary.draw, sample=int(sample), advantage=float(next(credited))),
                tokens=item.summary.prompt_length + int(item.summary.length_G[sample]),
                action_tokens=int(item.summary.action_tokens_G[sample]),
            )
            for sample in own
        ]
        for item, own in zip(taken, judged, strict=True)
    ]


def _deal(candidates: Sequence[_Candidate], ranks: int) -> list[list[_Candidate]]:
    """Longest first to the rank with the least to do; within a rank, in draw order."""
    dealt: list[list[_Candidate]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for candidate in sorted(candidates, key=lambda c: (-c.tokens, c.row.draw, c.row.sample)):
        rank = min(range(ranks), key=lambda rank: (load[rank], rank))
        dealt[rank].append(candidate)
        load[rank] += candidate.tokens
    return [sorted(own, key=lambda candidate: (candidate.row.draw, candidate.row.sample)) for own in dealt]


def _groups_of(share: Sequence[Update], taken: Sequence[TakenGroup]) -> tuple[ObjectRef, ...]:
    draws = {row.draw for update in share for row in update.rows}
    return tuple(item.group for item in taken if item.summary.draw in draws)
