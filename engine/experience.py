"""From scored groups to rows on ranks: rewards, who learns from which response, and what each is worth.

The driver sees numbers only; the tokens go from where they were made to the rank that learns from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from engine.algorithms.base import Algorithm, Outcomes
from engine.dealing import Siblings, WorkModel, deal
from engine.rollout_stream import TakenGroup
from workers.records import AlgorithmState, GroupSummary, Metrics, Row, Totals, Update
from workers.stopped import RunStopped

if TYPE_CHECKING:
    from ray import ObjectRef


class NothingToLearn(RunStopped):
    """An optimizer step has no response that can be learned from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One batch of rollouts, dealt out. Every sequence but the outcomes' has an entry a rank."""

    shares: tuple[tuple[Update, ...], ...]
    groups: tuple[tuple[ObjectRef, ...], ...]
    """The groups that each rank's rows come from."""
    outcomes: Outcomes
    """Of every judged response, also of those that are compared with but not learned from."""
    places: tuple[np.ndarray, ...]
    """Where each rank's rows stand among the outcomes."""

    @property
    def action_tokens(self) -> int:
        return sum(update.totals.tokens for update in self.shares[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A judged response. `place` is its number among the outcomes."""

    place: int
    draw: int
    sample: int
    reward: float
    greedy: float
    prompt_length: int
    length: int
    """Response tokens."""
    action_tokens: int
    trains: bool


def assign(
    taken: Sequence[TakenGroup],
    algorithm: Algorithm,
    *,
    ranks: int,
    updates_per_step: int,
    horizon: int,
    work: WorkModel,
) -> Assignment:
    """Shape every judged response's score, split the groups into optimizer steps, and balance each over the ranks.

    Raises NothingToLearn when an optimizer step would have fewer rows than ranks.
    """
    by_group = list(_judged(taken, algorithm, horizon=horizon))
    everybody = [judged for group in by_group for judged in group]
    shares: list[list[Update]] = [[] for _ in range(ranks)]
    places: list[list[int]] = [[] for _ in range(ranks)]
    for number, indices in enumerate(np.array_split(np.arange(len(taken)), updates_per_step)):
        groups = [[judged for judged in by_group[index] if judged.trains] for index in indices]
        candidates = [judged for group in groups for judged in group]
        if len(candidates) < ranks:
            raise NothingToLearn(
                f"optimizer step {number} has {len(candidates)} responses to learn from, for {ranks} ranks"
            )
        tokens_of = {group[0].draw: sum(judged.action_tokens for judged in group) for group in groups if group}
        totals = Totals(
            tokens=sum(tokens_of.values()),
            sequences=sum(judged.action_tokens > 0 for judged in candidates),
            prompts=sum(tokens > 0 for tokens in tokens_of.values()),
            horizon=horizon,
        )
        families = [_siblings(group, work) for group in groups]
        for rank, dealt in enumerate(deal(families, ranks)):
            owned = [groups[family][number] for family, number in dealt]
            rows = tuple(
                Row(draw=own.draw, sample=own.sample, reward=own.reward, prompt_tokens=tokens_of[own.draw])
                for own in owned
            )
            shares[rank].append(Update(rows=rows, totals=totals))
            places[rank] += [own.place for own in owned]
    return Assignment(
        shares=tuple(tuple(share) for share in shares),
        groups=tuple(_groups_of(share, taken) for share in shares),
        outcomes=Outcomes(
            score_B=np.array([judged.reward for judged in everybody], dtype=np.float64),
            greedy_B=np.array([judged.greedy for judged in everybody], dtype=np.float64),
            length_B=np.array([judged.action_tokens for judged in everybody], dtype=np.int64),
            group_B=np.array([judged.draw for judged in everybody], dtype=np.int64),
        ),
        places=tuple(np.array(own, dtype=np.int64) for own in places),
    )


def advantages(
    batch: Assignment, algorithm: Algorithm, state: AlgorithmState, *, divergence: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], Metrics]:
    """What each response is worth, for each rank's rows, and figures of it; statistics see the whole batch.

    `divergence`: of each rank's rows from the reference, summed over action tokens. Algorithms that give credit by the
    response compare scores from which its cost is taken off; the others charge it token by token.
    """
    outcomes = batch.outcomes
    looked_at = np.concatenate(batch.places)
    divergence_B = np.zeros(len(outcomes.score_B))
    divergence_B[looked_at] = np.concatenate(divergence)
    is_known_B = np.isfinite(divergence_B)
    charged = outcomes
    if not algorithm.credits_tokens:
        charge_B = np.where(is_known_B, state.kl_coef * divergence_B, 0.0)
        charged = replace(outcomes, score_B=outcomes.score_B - charge_B)
    # So that the trainers skip the update of a response whose divergence is no number.
    advantage_B = np.where(is_known_B, algorithm.advantage(charged), np.nan)
    metrics = {
        "advantage_std": float(np.std(advantage_B)),
        "shaped_reward": float(outcomes.score_B.mean()),
        "responses": float(len(advantage_B)),
    }
    if algorithm.charges_reward:
        metrics["kl_coef"] = state.kl_coef
        # Of the responses that are learned from: nobody looked at the others.
        metrics["reward_kl"] = float(np.mean((divergence_B / np.maximum(outcomes.length_B, 1))[looked_at]))
    return [advantage_B[places] for places in batch.places], metrics


def _judged(taken: Sequence[TakenGroup], algorithm: Algorithm, *, horizon: int) -> Iterator[list[_Judged]]:
    """Judged responses by group, with shaped rewards."""
    place = 0
    for summary in (item.summary for item in taken):
        reward_G, greedy = _rewards(summary, algorithm, horizon=horizon)
        trains_G = algorithm.shaping.trains_on(summary.truncated_G)
        # Without the response that it is compared with, a response cannot be judged.
        comparable = np.isfinite(greedy) or not algorithm.needs.greedy
        group = []
        for sample in np.flatnonzero(np.isfinite(reward_G) & comparable):
            group.append(
                _Judged(
                    place=place,
                    draw=summary.draw,
                    sample=int(sample),
                    reward=float(reward_G[sample]),
                    greedy=greedy,
                    prompt_length=summary.prompt_length,
                    length=int(summary.length_G[sample]),
                    action_tokens=int(summary.action_tokens_G[sample]),
                    trains=bool(trains_G[sample]),
                )
            )
            place += 1
        yield group


def _rewards(summary: GroupSummary, algorithm: Algorithm, *, horizon: int) -> tuple[np.ndarray, float]:
    """Of the siblings and of the greedy response, NaN where there is none."""
    reward_G = algorithm.shaping.rewards(
        summary.score_G, length_B=summary.action_tokens_G, truncated_B=summary.truncated_G, max_length=horizon
    )
    if summary.greedy is None:
        return reward_G, float("nan")
    [greedy] = algorithm.shaping.rewards(
        np.array([summary.greedy.score]),
        length_B=np.array([summary.greedy.action_tokens]),
        truncated_B=np.array([summary.greedy.truncated]),
        max_length=horizon,
    )
    return reward_G, float(greedy)


def _siblings(group: Sequence[_Judged], work: WorkModel) -> Siblings:
    return Siblings(
        prompt=work.prompt(group[0].prompt_length) if group else 0.0,
        rows=tuple(work.row(own.prompt_length, own.length) for own in group),
    )


def _groups_of(share: Sequence[Update], taken: Sequence[TakenGroup]) -> tuple[ObjectRef, ...]:
    draws = {row.draw for update in share for row in update.rows}
    return tuple(item.group for item in taken if item.summary.draw in draws)
