"""Assigning: every judged response is learned from once, by one rank, for what it is worth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.algorithms.grpo import GRPO
from engine.experience import Assignment, NothingToLearn, assign
from engine.rollout_stream import TakenGroup
from workers.records import GroupSummary, Row

HORIZON = 64
NAN = float("nan")
RAW = GRPO(divide_by_std=False)


def taken(draw: int, scores: list[float], *, lengths: list[int] | None = None, actions: list[int] | None = None):
    length_G = np.array(lengths or [3] * len(scores))
    summary = GroupSummary(
        draw=draw, prompt_id=f"p{draw}", score_G=np.array(scores, dtype=np.float64), length_G=length_G,
        action_tokens_G=np.array(actions) if actions else length_G, prompt_length=5,
        truncated_G=np.zeros(len(scores), dtype=bool), version=0, failures=(), parts={}, judging_s=0.0,
    )  # fmt: skip
    return TakenGroup(summary=summary, group=f"group {draw}")


def dealt(groups: list[TakenGroup], *, ranks: int = 1, updates: int = 1, algorithm: GRPO = RAW) -> Assignment:
    return assign(groups, algorithm, ranks=ranks, updates_per_step=updates, horizon=HORIZON)


def rows_of(assignment: Assignment) -> list[Row]:
    return [row for share in assignment.shares for update in share for row in update.rows]


@st.composite
def batches(draw: st.DrawFn) -> list[TakenGroup]:
    """Groups of unlike sizes and lengths, draws with gaps, some responses unjudged."""
    draws = sorted(draw(st.sets(st.integers(0, 1000), min_size=3, max_size=12)))
    score = st.sampled_from([0.0, 0.5, 1.0, -2.25, NAN])
    groups = []
    for number in draws:
        scores = draw(st.lists(score, min_size=1, max_size=6))
        lengths = draw(st.lists(st.integers(1, 60), min_size=len(scores), max_size=len(scores)))
        actions = [draw(st.integers(0, length)) for length in lengths]
        groups.append(taken(number, scores, lengths=lengths, actions=actions))
    return groups


def judged(groups: list[TakenGroup]) -> list[tuple[int, int]]:
    return [
        (item.summary.draw, sample)
        for item in groups
        for sample, score in enumerate(item.summary.score_G)
        if np.isfinite(score)
    ]


def brute_force_grpo(groups: list[TakenGroup]) -> dict[tuple[int, int], float]:
    """DeepSeekMath, equation 3, a group at a time, in plain Python; unjudged responses are not there."""
    advantages = {}
    for item in groups:
        scores = {sample: float(s) for sample, s in enumerate(item.summary.score_G) if np.isfinite(s)}
        if not scores:
            continue
        mean = sum(scores.values()) / len(scores)
        variance = sum((s - mean) ** 2 for s in scores.values()) / max(len(scores) - 1, 1)
        for sample, score in scores.items():
            equal = len(set(scores.values())) == 1
            advantages[item.summary.draw, sample] = 0.0 if equal else (score - mean) / (variance**0.5 + 1e-6)
    return advantages


@settings(max_examples=60, deadline=None)
@given(groups=batches(), ranks=st.integers(1, 4), updates=st.integers(1, 3))
def test_every_judged_response_is_learned_from_once_for_what_it_is_worth(
    groups: list[TakenGroup], ranks: int, updates: int
) -> None:
    try:
        assignment = dealt(groups, ranks=ranks, updates=updates, algorithm=GRPO())
    except NothingToLearn:
        parts = np.array_split(np.arange(len(groups)), updates)
        assert any(len(judged([groups[index] for index in part])) < ranks for part in parts)
        return
    rows = rows_of(assignment)
    assert sorted((row.draw, row.sample) for row in rows) == judged(groups)
    expected = brute_force_grpo(groups)
    for row in rows:
        assert row.advantage == pytest.approx(expected[row.draw, row.sample], abs=1e-9)
    assert assignment.advantage_std == pytest.approx(np.std(list(expected.values())), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(groups=batches(), ranks=st.integers(1, 4), updates=st.integers(1, 3))
def test_totals_are_those_of_the_whole_optimizer_step_on_every_rank(
    groups: list[TakenGroup], ranks: int, updates: int
) -> None:
    by_draw = {item.summary.draw: item.summary for item in groups}
    try:
        assignment = dealt(groups, ranks=ranks, updates=updates)
    except NothingToLearn:
        return
    assert [len(share) for share in assignment.shares] == [updates] * ranks
    for update in range(updates):
        [totals] = {share[update].totals for share in assignment.shares}
        rows = [row for share in assignment.shares for row in share[update].rows]
        actions = [int(by_draw[row.draw].action_tokens_G[row.sample]) for row in rows]
        assert totals.tokens == sum(actions)
        assert totals.sequences == sum(count > 0 for count in actions)
        assert totals.prompts == len({row.draw for row in rows})
        assert totals.horizon == HORIZON
    assert assignment.action_tokens == sum(
        int(by_draw[draw].action_tokens_G[sample]) for draw, sample in judged(groups)
    )


@settings(max_examples=60, deadline=None)
@given(groups=batches(), ranks=st.integers(1, 4), updates=st.integers(1, 3))
def test_ranks_do_equal_work_up_to_one_longest_row_and_each_has_some(
    groups: list[TakenGroup], ranks: int, updates: int
) -> None:
    by_draw = {item.summary.draw: item.summary for item in groups}
    try:
        assignment = dealt(groups, ranks=ranks, updates=updates)
    except NothingToLearn:
        return
    for update in range(updates):
        costs = [
            [by_draw[r.draw].prompt_length + int(by_draw[r.draw].length_G[r.sample]) for r in share[update].rows]
            for share in assignment.shares
        ]
        loads = [sum(own) for own in costs]
        assert all(costs)
        assert max(loads) - min(loads) <= max(max(own) for own in costs)


@settings(max_examples=60, deadline=None)
@given(groups=batches(), ranks=st.integers(1, 4), updates=st.integers(1, 3))
def test_a_rank_gets_the_groups_of_its_rows_and_no_other(groups: list[TakenGroup], ranks: int, updates: int) -> None:
    try:
        assignment = dealt(groups, ranks=ranks, updates=updates)
    except NothingToLearn:
        return
    for share, references in zip(assignment.shares, assignment.groups, strict=True):
        draws = sorted({row.draw for update in share for row in update.rows})
        assert references == tuple(f"group {draw}" for draw in draws)


def test_an_unjudged_response_is_in_no_row_in_no_total_and_in_no_baseline() -> None:
    groups = [taken(4, [1.0, NAN, 0.0], lengths=[2, 50, 3]), taken(9, [NAN, NAN], lengths=[7, 7])]
    assignment = dealt(groups)
    [[update]] = assignment.shares
    assert update.rows == (Row(draw=4, sample=0, advantage=0.5), Row(draw=4, sample=2, advantage=-0.5))
    totals = update.totals
    assert (totals.tokens, totals.sequences, totals.prompts) == (5, 2, 1)
    assert assignment.groups == (("group 4",),)


def test_groups_are_never_split_over_optimizer_steps() -> None:
    groups = [taken(draw, [1.0, 0.0]) for draw in range(5)]
    [share] = dealt(groups, updates=2).shares
    assert [{row.draw for row in update.rows} for update in share] == [{0, 1, 2}, {3, 4}]


def test_the_split_over_ranks_does_not_change_what_a_row_is_worth() -> None:
    generator = np.random.default_rng(2)
    groups = [
        taken(draw, generator.normal(size=6).tolist(), lengths=generator.integers(1, 60, 6).tolist())
        for draw in range(8)
    ]
    alone = sorted(rows_of(dealt(groups, algorithm=GRPO())), key=lambda row: (row.draw, row.sample))
    for ranks in (2, 3, 4):
        shared = rows_of(dealt(groups, ranks=ranks, algorithm=GRPO()))
        assert sorted(shared, key=lambda row: (row.draw, row.sample)) == alone


@pytest.mark.parametrize(
    ("groups", "ranks", "updates", "number"),
    [
        ([taken(0, [NAN, NAN])], 1, 1, 0),
        ([taken(0, [1.0, NAN])], 2, 1, 0),
        ([taken(0, [1.0, 0.0]), taken(1, [NAN, NAN])], 1, 2, 1),
    ],
)
def test_an_optimizer_step_with_fewer_rows_than_ranks_is_named(
    groups: list[TakenGroup], ranks: int, updates: int, number: int
) -> None:
    with pytest.raises(NothingToLearn, match=f"optimizer step {number} has"):
        dealt(groups, ranks=ranks, updates=updates)
