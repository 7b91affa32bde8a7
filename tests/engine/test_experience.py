"""Assigning: every judged response is learned from once, by one rank, for what it is worth.

Golden numbers are from an independent implementation in plain numpy.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.algorithms.base import Algorithm
from engine.algorithms.groups import Scale
from engine.algorithms.grpo import GRPO
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import KlIn
from engine.algorithms.ppo import PPO
from engine.algorithms.reinforce_pp import ReinforcePP
from engine.algorithms.remax import ReMax
from engine.algorithms.rloo import RLOO
from engine.algorithms.shaping import Shaping, Truncated
from engine.dealing import WorkModel
from engine.experience import Assignment, NothingToLearn, advantages, assign
from engine.rollout_stream import TakenGroup
from rewards.score import judgement_of
from workers.records import AlgorithmState, GreedyOutcome, GroupSummary, Metrics, Row

HORIZON = 64
NAN = float("nan")
RAW = GRPO(scale=Scale.NONE)
WORK = WorkModel(pair=0.0, response_token=0.0, shares_prompts=False)
"""Every token costs the same."""
Name = tuple[int, int]
"""Of a response: draw and sample."""


def taken(
    draw: int,
    scores: list[float],
    *,
    lengths: list[int] | None = None,
    actions: list[int] | None = None,
    truncated: list[bool] | None = None,
    greedy: GreedyOutcome | None = None,
) -> TakenGroup:
    length_G = np.array(lengths or [3] * len(scores))
    judgements = [judgement_of(score, name="f") for score in scores]
    summary = GroupSummary(
        draw=draw, prompt_id=f"p{draw}", judgements=tuple(judgements), length_G=length_G,
        action_tokens_G=np.array(actions) if actions else length_G, prompt_length=5,
        truncated_G=np.array(truncated or [False] * len(scores)), greedy=greedy, tokens_by_version={0: 1},
        judging_s=0.0, repetition_G=np.zeros(len(scores)), digest_G=np.arange(len(scores)), answer_digest=0,
    )  # fmt: skip
    return TakenGroup(summary=summary, group=f"group {draw}")


def greedy(score: float, *, actions: int = 3, truncated: bool = False) -> GreedyOutcome:
    return GreedyOutcome(score=score, action_tokens=actions, truncated=truncated)


def dealt(
    groups: list[TakenGroup],
    *,
    ranks: int = 1,
    updates: int = 1,
    algorithm: Algorithm = RAW,
    horizon: int = HORIZON,
) -> Assignment:
    return assign(groups, algorithm, ranks=ranks, updates_per_step=updates, horizon=horizon, work=WORK)


def rows_of(assignment: Assignment) -> list[Row]:
    return [row for share in assignment.shares for update in share for row in update.rows]


def worth(
    assignment: Assignment,
    algorithm: Algorithm = RAW,
    *,
    divergence: dict[Name, float] | None = None,
    kl_coef: float = 0.0,
) -> tuple[dict[Name, float], Metrics]:
    """What each row's response is worth to the rank that has the row, when the ranks saw these divergences."""
    names = [[(row.draw, row.sample) for update in share for row in update.rows] for share in assignment.shares]
    seen = [np.array([(divergence or {}).get(name, 0.0) for name in own]) for own in names]
    by_rank, metrics = advantages(assignment, algorithm, AlgorithmState(kl_coef=kl_coef), divergence=seen)
    return {
        name: float(a) for own, own_B in zip(names, by_rank, strict=True) for name, a in zip(own, own_B, strict=True)
    }, metrics


def rewards_of(assignment: Assignment) -> dict[Name, float]:
    return {(row.draw, row.sample): row.reward for row in rows_of(assignment)}


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
    found, metrics = worth(assignment, GRPO())
    assert found == pytest.approx(expected, abs=1e-9)
    assert metrics["advantage_std"] == pytest.approx(np.std(list(expected.values())), abs=1e-9)
    assert metrics["responses"] == len(expected)


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
        tokens_of = {row.draw: 0 for row in rows}
        for row, count in zip(rows, actions, strict=True):
            tokens_of[row.draw] += count
        assert totals.prompts == sum(count > 0 for count in tokens_of.values())
        assert [row.prompt_tokens for row in rows] == [tokens_of[row.draw] for row in rows]
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
    assert update.rows == (
        Row(draw=4, sample=0, reward=1.0, prompt_tokens=5),
        Row(draw=4, sample=2, reward=0.0, prompt_tokens=5),
    )
    assert worth(assignment)[0] == {(4, 0): 0.5, (4, 2): -0.5}
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
    divergence = {(draw, sample): float(generator.normal()) for draw in range(8) for sample in range(6)}
    charged = GRPO(kl_in=KlIn.REWARD, kl_estimator=KlEstimator.K1)

    def of_ranks(ranks: int) -> tuple[list[Row], dict[Name, float], Metrics]:
        assignment = dealt(groups, ranks=ranks, algorithm=charged)
        rows = sorted(rows_of(assignment), key=lambda row: (row.draw, row.sample))
        return rows, *worth(assignment, charged, divergence=divergence, kl_coef=0.3)

    alone = of_ranks(1)
    for ranks in (2, 3, 4):
        rows, found, metrics = of_ranks(ranks)
        assert rows == alone[0] and found == alone[1]
        assert metrics == pytest.approx(alone[2], rel=1e-12)


@pytest.mark.parametrize(
    ("groups", "ranks", "updates", "number"),
    [
        ([taken(0, [NAN, NAN])], 1, 1, 0),
        ([taken(0, [1.0, NAN])], 2, 1, 0),
        ([taken(0, [1.0, 0.0]), taken(1, [NAN, NAN])], 1, 2, 1),
        ([taken(0, [1.0, 0.0], truncated=[True, True])], 1, 1, 0),
        ([taken(0, [1.0, 0.0])], 1, 2, 1),
    ],
)
def test_an_optimizer_step_with_fewer_rows_than_ranks_is_named(
    groups: list[TakenGroup], ranks: int, updates: int, number: int
) -> None:
    with pytest.raises(NothingToLearn, match=f"optimizer step {number} has"):
        dealt(groups, ranks=ranks, updates=updates, algorithm=GRPO(shaping=Shaping(truncated=Truncated.MASK)))


# ----------------------------------------------------------------------------- shaping


def test_the_last_share_of_the_length_limit_costs_more_as_in_dapo() -> None:
    """Golden: L_max 20480, L_cache 4096; beyond the limit the penalty is held."""
    lengths = [16000, 16384, 17408, 18432, 20480, 21000]
    algorithm = GRPO(shaping=Shaping(overlong_share=0.2))
    shaped = rewards_of(dealt([taken(0, [0.0] * 6, lengths=lengths)], algorithm=algorithm, horizon=20480))
    assert list(shaped.values()) == pytest.approx([0.0, 0.0, -0.25, -0.5, -1.0, -1.0])


def test_length_counts_the_policy_s_own_tokens_not_a_tool_s() -> None:
    group = taken(0, [1.0, 1.0], lengths=[64, 64], actions=[16, 48])
    algorithm = GRPO(shaping=Shaping(overlong_share=0.5, overlong_penalty=2.0))
    assert rewards_of(dealt([group], algorithm=algorithm)) == {(0, 0): 1.0, (0, 1): 0.0}


def test_scores_are_clipped_before_length_is_charged_and_truncation_has_the_last_word() -> None:
    group = taken(0, [9.0, -9.0, 9.0], lengths=[48, 48, 64], truncated=[False, False, True])
    shaping = {"clip": (-1.0, 1.0), "overlong_share": 0.5, "truncated_value": 0.25}

    def rewards(truncated: Truncated) -> list[float]:
        algorithm = GRPO(shaping=Shaping(**shaping, truncated=truncated))
        return list(rewards_of(dealt([group], algorithm=algorithm)).values())

    assert rewards(Truncated.KEEP) == [0.5, -1.5, 0.0]
    assert rewards(Truncated.SET) == [0.5, -1.5, 0.25]
    assert rewards(Truncated.SCALE) == [0.5, -1.5, 0.25 * 0.0]
    assert rewards(Truncated.MASK) == [0.5, -1.5]


def test_a_masked_response_is_compared_with_and_not_learned_from() -> None:
    group = taken(3, [1.0, 0.0, 0.5], lengths=[2, 4, 64], truncated=[False, False, True])
    algorithm = GRPO(scale=Scale.NONE, shaping=Shaping(truncated=Truncated.MASK))
    assignment = dealt([group, taken(5, [1.0, 0.0], lengths=[64, 64], truncated=[True, True])], algorithm=algorithm)
    found, metrics = worth(assignment, algorithm)
    assert found == pytest.approx({(3, 0): 0.5, (3, 1): -0.5})  # the mean counts the third
    assert metrics["responses"] == 5
    [[update]] = assignment.shares
    assert (update.totals.tokens, update.totals.sequences, update.totals.prompts) == (6, 2, 1)
    assert {row.prompt_tokens for row in update.rows} == {6}
    assert assignment.groups == (("group 3",),)


def test_siblings_are_compared_by_their_shaped_rewards() -> None:
    group = taken(0, [1.0, 1.0], lengths=[8, 64])
    algorithm = GRPO(scale=Scale.NONE, shaping=Shaping(overlong_share=0.5))
    found, metrics = worth(dealt([group], algorithm=algorithm), algorithm)
    assert found == {(0, 0): 0.5, (0, 1): -0.5}
    assert metrics["shaped_reward"] == 0.5


# ----------------------------------------------------------------------------- the greedy response


def test_a_response_is_worth_what_it_did_better_than_the_greedy_one() -> None:
    groups = [taken(0, [1.0, 0.0], greedy=greedy(0.25)), taken(1, [0.5], greedy=greedy(1.0))]
    assert worth(dealt(groups, algorithm=ReMax()), ReMax())[0] == {(0, 0): 0.75, (0, 1): -0.25, (1, 0): -0.5}


def test_the_greedy_response_is_shaped_as_the_others_are() -> None:
    algorithm = ReMax(
        shaping=Shaping(clip=(0.0, 1.0), overlong_share=0.5, truncated=Truncated.SET, truncated_value=-2.0)
    )
    groups = [
        taken(0, [1.0], greedy=greedy(7.0, actions=48)),
        taken(1, [1.0], greedy=greedy(1.0, actions=64, truncated=True)),
    ]
    assert worth(dealt(groups, algorithm=algorithm), algorithm)[0] == {(0, 0): 1.0 - 0.5, (1, 0): 1.0 + 2.0}


def test_a_group_whose_greedy_response_could_not_be_judged_is_left_out() -> None:
    groups = [taken(0, [1.0, 0.0], greedy=greedy(NAN)), taken(1, [1.0], greedy=greedy(0.5))]
    assignment = dealt(groups, algorithm=ReMax())
    assert worth(assignment, ReMax())[0] == {(1, 0): 0.5}
    assert assignment.groups == (("group 1",),) and assignment.action_tokens == 3
    # Whoever compares with siblings does not miss it.
    assert worth(dealt(groups))[0] == {(0, 0): 0.5, (0, 1): -0.5, (1, 0): 0.0}


# ----------------------------------------------------------------------------- divergence in the reward

GROUP_B, SCORE_B = [0, 0, 0, 0, 1, 1, 2], [1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.3]
KL_BT = [
    [0.1, -0.2, 0.3, 0.0, 0.2],
    [0.4, 0.1, 0.0],
    [0.2, 0.2, -0.1, 0.1],
    [0.0, 0.5],
    [0.1, 0.1, 0.1, 0.1, 0.1],
    [0.3, -0.1, 0.2],
    [0.0, 0.0, 0.4, 0.2],
]
GRPO_ADVANTAGE_B = [1.301806, -0.785216, 0.268627, -0.785216, -0.707007, 0.707007, 0.0]
RLOO_ADVANTAGE_B = [0.84, -0.506667, 0.173333, -0.506667, -0.01, 0.01, 0.0]
CHARGED = {"kl_coef": 0.1, "kl_in": KlIn.REWARD, "kl_estimator": KlEstimator.K1}


def golden_groups() -> tuple[list[TakenGroup], list[Name]]:
    names = [(group, GROUP_B[:row].count(group)) for row, group in enumerate(GROUP_B)]
    groups = [
        taken(
            group,
            [score for own, score in zip(GROUP_B, SCORE_B, strict=True) if own == group],
            lengths=[len(kl_T) for own, kl_T in zip(GROUP_B, KL_BT, strict=True) if own == group],
        )
        for group in range(3)
    ]
    return groups, names


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    ("algorithm", "expected_B"),
    [(GRPO(**CHARGED), GRPO_ADVANTAGE_B), (RLOO(**CHARGED), RLOO_ADVANTAGE_B)],
    ids=["grpo", "rloo"],
)
def test_a_response_s_divergence_is_taken_off_its_score_before_siblings_are_compared(
    algorithm: Algorithm, expected_B: list[float], ranks: int
) -> None:
    groups, names = golden_groups()
    divergence = {name: sum(kl_T) for name, kl_T in zip(names, KL_BT, strict=True)}
    found, metrics = worth(
        dealt(groups, ranks=ranks, algorithm=algorithm), algorithm, divergence=divergence, kl_coef=0.1
    )
    assert [found[name] for name in names] == pytest.approx(expected_B, abs=2e-6)
    assert metrics["reward_kl"] == pytest.approx(np.mean([np.mean(kl_T) for kl_T in KL_BT]))
    assert metrics["shaped_reward"] == pytest.approx(np.mean(SCORE_B)) and metrics["kl_coef"] == 0.1


def test_the_coefficient_is_the_one_that_the_run_has_come_to() -> None:
    algorithm = GRPO(scale=Scale.NONE, **CHARGED)
    assignment = dealt([taken(0, [1.0, 0.0])], algorithm=algorithm)
    found, _ = worth(assignment, algorithm, divergence={(0, 0): 1.0}, kl_coef=0.5)
    assert found == {(0, 0): 0.25, (0, 1): -0.25}


@pytest.mark.parametrize("algorithm", [PPO(), ReinforcePP()])
def test_where_tokens_are_credited_the_score_is_left_for_them_to_charge(algorithm: Algorithm) -> None:
    assignment = dealt([taken(0, [1.0, 0.0], lengths=[4, 2])], ranks=2, algorithm=algorithm)
    found, metrics = worth(assignment, algorithm, divergence={(0, 0): 8.0, (0, 1): 2.0}, kl_coef=0.5)
    assert found == {(0, 0): 1.0, (0, 1): 0.0}
    assert metrics["reward_kl"] == pytest.approx((8.0 / 4 + 2.0 / 2) / 2)


def test_the_mean_divergence_is_that_of_the_responses_that_were_looked_at() -> None:
    algorithm = GRPO(**CHARGED, shaping=Shaping(truncated=Truncated.MASK))
    group = taken(0, [1.0, 0.0, 0.0], lengths=[4, 4, 64], truncated=[False, False, True])
    _, metrics = worth(dealt([group], algorithm=algorithm), algorithm, divergence={(0, 0): 4.0, (0, 1): 12.0})
    assert metrics["reward_kl"] == pytest.approx(2.0)


def test_without_a_charge_there_is_no_figure_of_it() -> None:
    metrics = worth(dealt([taken(0, [1.0, 0.0])], algorithm=GRPO()), GRPO())[1]
    assert not {"reward_kl", "kl_coef"} & metrics.keys()
