"""The stream: which draws a step admits, takes and passes over, whatever the workers' pace."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.algorithms.dynamic_sampling import DynamicSampling, Exhausted, Surplus
from engine.algorithms.grpo import GRPO
from engine.algorithms.remax import ReMax
from engine.algorithms.shaping import Shaping
from engine.ledger import Ledger, WrongWeights
from engine.rollout_stream import NotEnoughGroups, RewardsFailed, RolloutStream, Taken, TakenGroup
from engine.shuffle import Shuffle
from rewards.score import Failure, FailureKind, Score
from workers.config import RewardConfig, RolloutConfig
from workers.records import GroupRequest, GroupSummary, Prompt

PROMPTS = tuple(Prompt(id=f"p{n}", messages=(), token_ids=(n,), answer="", row={}, from_text=True) for n in range(10))
FAILURE = Failure(kind=FailureKind.TIMEOUT, reason="no answer within 10 s")
Judge = Callable[[GroupRequest], tuple[Failure, ...]]
UNIFORM = {"all_right": (1.0, 1.0), "all_wrong": (0.0, 0.0), "unjudged": (np.nan, 1.0)}
"""Scores of groups that teach nothing, by the reason."""


@dataclass(frozen=True, kw_only=True)
class Picky(GRPO):
    """Passes groups over for reasons of its own."""

    reasons: Mapping[int, str] = field(default_factory=dict)

    def keep(self, summary: GroupSummary) -> str | None:
        return self.reasons.get(summary.draw)


@dataclass(frozen=True)
class Ref:
    """A reference that is ready when the workers say so."""

    request: GroupRequest
    is_summary: bool


class FakeWorkers:
    """Generates and scores at once, and keeps record of it. Its own rollout group, its own reward group."""

    def __init__(
        self, judge: Judge = lambda request: (), *, scores: Mapping[int, tuple[float, ...]] | None = None
    ) -> None:
        """`scores` of the groups that are not (1, 0), by draw."""
        self.rollout = self.reward = self
        self.asked: list[GroupRequest] = []
        self.waited: list[int] = []
        self.cut: list[int] = []
        self.version = 0
        self._judge, self._scores = judge, scores or {}
        self._sampled_by: dict[int, int] = {}

    def generate(self, request: GroupRequest) -> Ref:
        self.asked.append(request)
        self._sampled_by[request.draw] = self.version
        return Ref(request, is_summary=False)

    def score(self, group: Ref, *, draw: int) -> Ref:
        assert draw == group.request.draw
        return Ref(group.request, is_summary=True)

    def wait(self, refs: list[Ref], *, verb: str) -> list[GroupSummary]:
        assert all(ref.is_summary for ref in refs)
        self.waited += [ref.request.draw for ref in refs]
        return [self.summary(ref.request) for ref in refs]

    def summary(self, request: GroupRequest) -> GroupSummary:
        own = self._scores.get(request.draw, (1.0, 0.0))[: request.num_samples]
        failures = self._judge(request)
        size, version = len(own), self._sampled_by[request.draw]
        judgements = (*failures, *(Score(total=score, parts={}) for score in own[len(failures) :]))
        count_G = np.full(size, 3)
        return GroupSummary(
            draw=request.draw, prompt_id=request.prompt.id, judgements=judgements, length_G=count_G,
            action_tokens_G=count_G, prompt_length=1, truncated_G=np.zeros(size, dtype=bool),
            greedy=None, tokens_by_version={version: 3 * size}, judging_s=0.0,
            repetition_G=np.zeros(size), digest_G=np.arange(size), answer_digest=0,
        )  # fmt: skip

    def wait_for_one(self, refs: list[Ref], *, verb: str) -> int:
        return 0

    def cut_off(self, draws: list[int]) -> int:
        self.cut += draws
        return 5 * len(draws)

    @property
    def draws(self) -> list[int]:
        return [request.draw for request in self.asked]


class Shuffled(FakeWorkers):
    """Groups become ready in an order of chance; a wait for one is answered when its turn has come."""

    def __init__(self, order: random.Random, *, scores: Mapping[int, tuple[float, ...]] | None = None) -> None:
        super().__init__(scores=scores)
        self._order, self._ready = order, {}

    def wait(self, refs: list[Ref], *, verb: str) -> list[GroupSummary]:
        late = [request for request in self.asked if request.draw not in self._ready]
        self._order.shuffle(late)
        while any(ref.request.draw not in self._ready for ref in refs):
            request = late.pop()
            self._ready[request.draw] = self.summary(request)
        return [self._ready[ref.request.draw] for ref in refs]


def stream(
    workers: FakeWorkers,
    *,
    per_step: int = 4,
    samples: int = 2,
    staleness: int = 0,
    algorithm: GRPO | None = None,
    max_failure_fraction: float = 0.0,
    seed: int = 1,
    next_draw: int = 0,
    carried: Sequence[TakenGroup] = (),
    steps: int = 1000,
    oversampling: float = 1.0,
    max_running: int = 256,
    listed: list[tuple[int, int]] | None = None,
) -> RolloutStream:
    """`listed`: gets the step and the draw of each group with failures."""
    listing = [] if listed is None else listed
    rollout = RolloutConfig(
        prompts_per_step=per_step,
        responses_per_prompt=samples,
        max_staleness=staleness,
        oversampling=oversampling,
        max_running=max_running,
        max_response_tokens=6,
    )
    return RolloutStream(
        PROMPTS,
        workers,
        rollout=rollout,
        reward=RewardConfig(max_failure_fraction=max_failure_fraction),
        algorithm=algorithm or GRPO(),
        list_failures=lambda step, summary: listing.append((step, summary.draw)),
        seed=seed,
        next_draw=next_draw,
        carried=carried,
        steps=steps,
    )


def drop(*draws: int) -> Picky:
    return Picky(reasons=dict.fromkeys(draws, "too easy"))


def dynamic(**settings: object) -> GRPO:
    return GRPO(dynamic_sampling=DynamicSampling(enabled=True, **settings))


def take(own: RolloutStream, workers: FakeWorkers, *, version: int) -> Taken:
    """One step, as the loop takes it: what is asked for meanwhile is sampled by this version."""
    workers.version = version
    return own.take(version=version)


def draws_of(taken: object) -> list[int]:
    return [group.summary.draw for group in taken.groups]


# ----------------------------------------------------------------------------- taking


def test_a_step_asks_for_exactly_what_it_learns_from_and_takes_it_in_draw_order() -> None:
    workers = FakeWorkers()
    own = stream(workers)
    for step in range(3):
        taken = take(own, workers, version=step)
        assert draws_of(taken) == workers.draws[4 * step :] == list(range(4 * step, 4 * step + 4))
        assert own.next_draw == 4 * (step + 1)
        assert (taken.dropped, taken.drawn, taken.carried) == (Counter(), 4, 0)
        assert all(group.group == Ref(workers.asked[group.summary.draw], is_summary=False) for group in taken.groups)


def test_all_groups_of_a_step_are_in_flight_before_the_first_is_waited_for() -> None:
    class Impatient(FakeWorkers):
        def wait(self, refs: list[Ref], *, verb: str) -> list[GroupSummary]:
            assert len(self.asked) >= 4
            return super().wait(refs, verb=verb)

    stream(Impatient()).take(version=0)


def test_a_request_says_all_that_sampling_needs() -> None:
    workers = FakeWorkers()
    stream(workers, seed=77).take(version=0)
    for request in workers.asked:
        assert (request.seed, request.num_samples) == (77, 2)
        assert (request.sampling.temperature, request.sampling.max_tokens) == (1.0, 6)
        assert not request.with_greedy
    other = FakeWorkers()
    stream(other, algorithm=ReMax()).take(version=0)
    assert all(request.with_greedy for request in other.asked)


def test_dropped_groups_are_replaced_by_the_next_draws_and_counted_by_reason() -> None:
    reasons = {0: "too easy", 1: "too easy", 4: "too hard"}
    workers = FakeWorkers()
    own = stream(workers, algorithm=Picky(reasons=reasons))
    taken = take(own, workers, version=0)
    assert draws_of(taken) == [2, 3, 5, 6]
    assert taken.dropped == Counter({"too easy": 2, "too hard": 1})
    assert workers.draws == list(range(7)) and own.next_draw == 7
    second = take(own, workers, version=1)
    assert draws_of(second) == [7, 8, 9, 10] and second.dropped == Counter()


@settings(max_examples=30, deadline=None)
@given(dropped=st.sets(st.integers(0, 40), max_size=15), staleness=st.integers(0, 2))
def test_every_draw_is_asked_for_once_and_taken_or_dropped_once(dropped: set[int], staleness: int) -> None:
    workers = FakeWorkers()
    own = stream(workers, algorithm=drop(*dropped), staleness=staleness)
    taken = [take(own, workers, version=step) for step in range(4)]
    kept = [draw for step in taken for draw in draws_of(step)]
    assert workers.draws == list(range(len(workers.draws)))
    assert own.next_draw == len(workers.waited)
    assert kept == [draw for draw in workers.waited if draw not in dropped]
    assert sum(step.dropped.total() for step in taken) == len(workers.waited) - len(kept)
    assert [len(step.groups) for step in taken] == [4] * 4
    assert sum(step.drawn for step in taken) == len(workers.waited)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_no_group_is_asked_for_so_early_that_it_grows_too_old(staleness: int) -> None:
    workers = FakeWorkers()
    own = stream(workers, staleness=staleness)
    asked_at: dict[int, int] = {}
    for version in range(5):
        taken = take(own, workers, version=version)
        asked_at |= {draw: version for draw in workers.draws if draw not in asked_at}
        assert all(version - asked_at[draw] <= staleness for draw in draws_of(taken))
        assert len(workers.asked) == (staleness + version + 1) * 4
    assert max(asked_at.values()) == 4


def test_the_same_groups_are_learned_from_whatever_order_they_arrive_in() -> None:
    runs = []
    for pace in range(5):
        workers = Shuffled(random.Random(pace))
        own = stream(workers, algorithm=drop(1, 6))
        taken = [take(own, workers, version=version) for version in range(3)]
        runs.append([[(group.summary.draw, group.summary.prompt_id) for group in step.groups] for step in taken])
    assert all(run == runs[0] for run in runs)


def test_a_resumed_stream_goes_on_where_the_first_one_stood() -> None:
    whole_workers, resumed_workers = FakeWorkers(), FakeWorkers()
    whole = stream(whole_workers, algorithm=drop(2, 9, 13))
    steps = [take(whole, whole_workers, version=step) for step in range(2)]
    standing = whole.next_draw
    steps += [take(whole, whole_workers, version=step) for step in range(2, 5)]
    resumed = stream(resumed_workers, algorithm=drop(2, 9, 13), next_draw=standing)
    again = [take(resumed, resumed_workers, version=step) for step in range(2, 5)]
    assert [draws_of(step) for step in again] == [draws_of(step) for step in steps[2:]]
    assert resumed_workers.asked == whole_workers.asked[standing:]


# ----------------------------------------------------------------------------- failures


def test_failures_up_to_the_allowed_share_pass() -> None:
    workers = FakeWorkers(lambda request: (FAILURE,) if request.draw in (1, 3) else ())
    taken = stream(workers, max_failure_fraction=0.25).take(version=0)  # 2 of 4 x 2
    assert draws_of(taken) == [0, 1, 2, 3]
    assert sum(len(group.summary.failures()) for group in taken.groups) == 2


def test_one_failure_more_stops_the_run_and_says_how_many_of_what_and_why() -> None:
    crash = Failure(kind=FailureKind.CRASH, reason="signal 11")
    failures = {0: (FAILURE,), 1: (crash, crash)}
    workers = FakeWorkers(lambda request: failures.get(request.draw, ()))
    with pytest.raises(RewardsFailed) as caught:
        stream(workers, max_failure_fraction=0.25).take(version=0)
    message = str(caught.value)
    for words in ("3 responses", "1 x timeout", "2 x crash", "allows 2", "no answer within 10 s"):
        assert words in message
    assert "signal 11" not in message


def test_failures_in_dropped_groups_count_too() -> None:
    workers = FakeWorkers(lambda request: (FAILURE,))
    with pytest.raises(RewardsFailed):
        stream(workers, algorithm=drop(*range(100)), max_failure_fraction=0.25).take(version=0)


def test_groups_with_failures_are_listed_by_their_step_also_those_that_stop_the_run() -> None:
    listed: list[tuple[int, int]] = []
    failures = {1: (FAILURE,), 6: (FAILURE, FAILURE)}
    workers = FakeWorkers(lambda request: failures.get(request.draw, ()))
    own = stream(workers, algorithm=drop(1), max_failure_fraction=0.125, listed=listed)
    assert take(own, workers, version=0).failures == (FAILURE,)
    with pytest.raises(RewardsFailed):
        take(own, workers, version=1)
    assert listed == [(1, 1), (2, 6)]


def test_what_was_passed_over_is_handed_out_with_the_reason() -> None:
    workers = FakeWorkers()
    taken = take(stream(workers, algorithm=drop(1, 2)), workers, version=0)
    assert [(item.taken.summary.draw, item.reason) for item in taken.passed_over] == [
        (1, "too easy"), (2, "too easy"),
    ]  # fmt: skip
    assert not {1, 2} & set(draws_of(taken))


def test_failures_of_one_step_are_forgotten_in_the_next() -> None:
    workers = FakeWorkers(lambda request: (FAILURE,) if request.draw % 4 < 2 else ())
    own = stream(workers, max_failure_fraction=0.25)
    for step in range(5):
        assert len(take(own, workers, version=step).groups) == 4


def test_the_allowed_share_is_of_all_that_was_judged_for_the_step() -> None:
    """Dynamic sampling draws more groups than the step needs, so more responses may fail than in one of four."""
    uniform = dict.fromkeys(range(4), (0.0, 0.0))
    workers = FakeWorkers(lambda request: (FAILURE,) if request.draw in (3, 4, 5, 6, 7) else (), scores=uniform)
    with pytest.raises(RewardsFailed, match=r"3 responses.*allows 2"):
        stream(workers, algorithm=dynamic(), max_failure_fraction=0.2).take(version=0)
    passing = FakeWorkers(lambda request: (FAILURE,) * (request.draw in (3, 4, 5)), scores=uniform)
    taken = stream(passing, algorithm=dynamic(), max_failure_fraction=0.25).take(version=0)
    assert taken.drawn == 10 and taken.dropped == Counter(all_wrong=3, unjudged=3)


def test_a_greedy_response_counts_as_one_that_was_judged() -> None:
    """Of 4 x (2 + 1) responses a quarter is 3, of 4 x 2 it is 2."""
    failures = lambda request: (FAILURE,) * (request.draw < 3)  # noqa: E731
    assert len(stream(FakeWorkers(failures), algorithm=ReMax(), max_failure_fraction=0.25).take(version=0).groups) == 4
    with pytest.raises(RewardsFailed, match="allows 2"):
        stream(FakeWorkers(failures), max_failure_fraction=0.25).take(version=0)


# ----------------------------------------------------------------------------- dynamic sampling

SCORES = st.dictionaries(st.integers(0, 60), st.sampled_from(list(UNIFORM)), max_size=30)


def scores_of(uniform: Mapping[int, str]) -> dict[int, tuple[float, ...]]:
    return {draw: UNIFORM[reason] for draw, reason in uniform.items()}


@settings(max_examples=60, deadline=None)
@given(uniform=SCORES, pace=st.integers(0, 100))
def test_a_step_takes_the_next_groups_that_teach_something_whatever_the_pace(
    uniform: dict[int, str], pace: int
) -> None:
    workers = Shuffled(random.Random(pace), scores=scores_of(uniform))
    own = stream(workers, algorithm=dynamic(max_batches=0))
    taken = [take(own, workers, version=step) for step in range(3)]
    informative = [draw for draw in range(200) if draw not in uniform]
    assert [draws_of(step) for step in taken] == [informative[:4], informative[4:8], informative[8:12]]
    assert sum((step.dropped for step in taken), Counter()) == Counter(
        reason for draw, reason in uniform.items() if draw < own.next_draw
    )
    assert [step.carried for step in taken] == [0, 0, 0]
    assert sum(step.drawn for step in taken) == own.next_draw == len(workers.draws) == informative[11] + 1


@settings(max_examples=60, deadline=None)
@given(uniform=SCORES, draw_ahead=st.sampled_from([1.3, 2.0, 5.0]), pace=st.integers(0, 100))
def test_drawing_ahead_does_not_make_it_matter_who_was_faster(
    uniform: dict[int, str], draw_ahead: float, pace: int
) -> None:
    scores = scores_of(uniform)
    in_order, shuffled = FakeWorkers(scores=scores), Shuffled(random.Random(pace), scores=scores)
    own, other = (stream(w, algorithm=dynamic(max_batches=0, draw_ahead=draw_ahead)) for w in (in_order, shuffled))
    for step in range(4):
        one, same = take(own, in_order, version=step), take(other, shuffled, version=step)
        assert draws_of(one) == draws_of(same) and len(one.groups) == 4
        assert (one.dropped, one.drawn, one.carried) == (same.dropped, same.drawn, same.carried)
        if step == 0:
            assert draws_of(one) == [draw for draw in range(200) if draw not in uniform][:4]
    assert in_order.asked == shuffled.asked


@settings(max_examples=60, deadline=None)
@given(uniform=SCORES, draw_ahead=st.sampled_from([1.0, 1.3, 3.0]), surplus=st.sampled_from(Surplus))
def test_every_group_is_taken_dropped_or_left_over_once(
    uniform: dict[int, str], draw_ahead: float, surplus: Surplus
) -> None:
    workers = FakeWorkers(scores=scores_of(uniform))
    own = stream(workers, algorithm=dynamic(draw_ahead=draw_ahead, surplus=surplus, exhausted=Exhausted.FILL))
    drawn = kept = dropped = left_over = 0
    for step in range(4):
        taken = take(own, workers, version=step)
        assert taken.carried <= left_over
        drawn, kept, dropped = drawn + taken.drawn, kept + len(taken.groups), dropped + taken.dropped.total()
        left_over = drawn - kept - dropped
        assert left_over >= 0 and (left_over == 0 or surplus is Surplus.CARRY)
        assert draws_of(taken) == sorted(draws_of(taken))
        assert all(step - group.summary.oldest_version <= 1 for group in taken.groups)
    assert workers.draws == list(range(drawn))


def test_what_is_missing_is_drawn_at_once_and_with_draw_ahead_a_few_more() -> None:
    workers = FakeWorkers(scores=scores_of(dict.fromkeys((0, 2), "all_wrong")))
    stream(workers, algorithm=dynamic()).take(version=0)
    assert workers.draws == list(range(6))
    ahead = FakeWorkers(scores=scores_of(dict.fromkeys((0, 2), "all_wrong")))
    taken = stream(ahead, algorithm=dynamic(draw_ahead=1.5)).take(version=0)
    assert draws_of(taken) == [1, 3, 4, 5]
    # 6 at first, and one more for each that was passed over while four, and then three, were missing.
    assert ahead.draws == list(range(8)) and taken.drawn == 8


def test_what_was_drawn_ahead_is_taken_first_by_the_next_step_and_is_one_version_old() -> None:
    workers = FakeWorkers()
    own = stream(workers, algorithm=dynamic(draw_ahead=1.5))
    first, second = (take(own, workers, version=step) for step in range(2))
    assert draws_of(first) == [0, 1, 2, 3] and (first.drawn, first.carried) == (6, 0)
    assert draws_of(second)[:2] == [4, 5] and second.carried == 2
    assert [group.summary.oldest_version for group in second.groups] == [0, 0, 1, 1]
    assert first.dropped == second.dropped == Counter()


def test_what_was_drawn_ahead_can_be_dropped_and_is_counted() -> None:
    workers = FakeWorkers()
    own = stream(workers, algorithm=dynamic(draw_ahead=1.5, surplus=Surplus.DROP))
    first, second = (take(own, workers, version=step) for step in range(2))
    assert first.dropped == second.dropped == Counter(surplus=2)
    assert draws_of(second) == [6, 7, 8, 9] and second.carried == 0
    assert {group.summary.oldest_version for group in second.groups} == {1}


def test_what_was_left_over_for_two_steps_is_too_old() -> None:
    workers = FakeWorkers()
    own = stream(workers, algorithm=dynamic(draw_ahead=4.0))
    first, second, third = (take(own, workers, version=step) for step in range(3))
    assert (first.drawn, second.drawn, second.carried) == (16, 0, 4)
    assert third.dropped == Counter(stale=8)
    assert {group.summary.oldest_version for group in third.groups} == {2}


@settings(max_examples=40, deadline=None)
@given(uniform=SCORES, saved=st.integers(1, 3), surplus=st.sampled_from(Surplus))
def test_after_a_checkpoint_a_resumed_stream_is_the_one_that_never_stopped(
    uniform: dict[int, str], saved: int, surplus: Surplus
) -> None:
    algorithm = dynamic(draw_ahead=2.0, surplus=surplus)
    workers = FakeWorkers(scores=scores_of(uniform))
    whole = stream(workers, algorithm=algorithm)
    for step in range(saved):
        take(whole, workers, version=step)
    standing = whole.next_draw
    others = FakeWorkers(scores=scores_of(uniform))
    resumed = stream(others, algorithm=algorithm, next_draw=standing, carried=whole.carried)
    for step in range(saved, 5):
        one, other = take(whole, workers, version=step), take(resumed, others, version=step)
        assert draws_of(one) == draws_of(other)
        assert (one.dropped, one.drawn, one.carried) == (other.dropped, other.drawn, other.carried)
    assert others.asked == workers.asked[standing:]


def all_wrong_but(*draws: int) -> dict[int, tuple[float, ...]]:
    return {draw: UNIFORM["all_wrong"] for draw in range(1000) if draw not in draws}


@pytest.mark.parametrize("draw_ahead", [1.0, 3.0])
def test_at_its_limit_a_step_learns_from_the_groups_that_it_has(draw_ahead: float) -> None:
    workers = FakeWorkers(scores=all_wrong_but(3, 11))
    own = stream(workers, algorithm=dynamic(max_batches=3, draw_ahead=draw_ahead))
    taken = take(own, workers, version=0)
    assert draws_of(taken) == [3, 11]
    assert (taken.drawn, own.next_draw, taken.dropped) == (12, 12, Counter(all_wrong=10))


def test_the_step_after_one_that_found_too_few_groups_has_a_limit_of_its_own() -> None:
    workers = FakeWorkers(scores=all_wrong_but(3, 9, 10, 11, 12))
    own = stream(workers, algorithm=dynamic(max_batches=2))
    assert draws_of(take(own, workers, version=0)) == [3]
    second = take(own, workers, version=1)
    assert draws_of(second) == [9, 10, 11, 12]
    assert (second.drawn, second.carried, own.next_draw) == (5, 0, 13)


def test_at_its_limit_a_step_may_fill_up_with_the_first_that_it_passed_over() -> None:
    workers = FakeWorkers(scores=all_wrong_but(6))
    own = stream(workers, algorithm=dynamic(max_batches=2, exhausted=Exhausted.FILL))
    taken = take(own, workers, version=0)
    assert draws_of(taken) == [0, 1, 2, 6]
    assert (taken.drawn, taken.dropped) == (8, Counter(all_wrong=4))


def test_at_its_limit_a_run_may_stop_and_says_what_it_saw_and_what_to_do() -> None:
    scores = all_wrong_but(2, 5) | scores_of({0: "all_right", 1: "unjudged"})
    workers = FakeWorkers(scores=scores)
    own = stream(workers, algorithm=dynamic(max_batches=2, exhausted=Exhausted.ERROR))
    with pytest.raises(NotEnoughGroups) as caught:
        take(own, workers, version=0)
    message = str(caught.value)
    for words in ("of 8 groups only 2 teach", "needs 4", "1 all_right", "1 unjudged", "4 all_wrong"):
        assert words in message
    for key in ("algo.dynamic_sampling.max_batches", "algo.dynamic_sampling.exhausted=fill"):
        assert key in message


def test_nothing_at_all_to_learn_from_stops_the_run_unless_it_may_fill_up() -> None:
    with pytest.raises(NotEnoughGroups, match="of 12 groups only 0 teach"):
        stream(FakeWorkers(scores=all_wrong_but()), algorithm=dynamic(max_batches=3)).take(version=0)
    filled = stream(
        FakeWorkers(scores=all_wrong_but()), algorithm=dynamic(max_batches=3, exhausted=Exhausted.FILL)
    ).take(version=0)
    assert draws_of(filled) == [0, 1, 2, 3]


def test_a_response_without_siblings_is_never_passed_over() -> None:
    workers = FakeWorkers(scores=all_wrong_but())
    taken = stream(workers, samples=1, algorithm=dynamic()).take(version=0)
    assert draws_of(taken) == [0, 1, 2, 3] and workers.draws == [0, 1, 2, 3]


def test_scores_that_differ_by_rounding_are_the_same_score() -> None:
    workers = FakeWorkers(scores={0: (0.1 + 0.2, 0.3), 1: (0.5, 0.50001), 2: (-1.0, -1.0)})
    taken = stream(workers, algorithm=dynamic()).take(version=0)
    assert draws_of(taken) == [1, 3, 4, 5]
    assert taken.dropped == Counter(all_right=1, all_wrong=1)


def test_raw_scores_decide_not_what_length_and_clipping_make_of_them() -> None:
    """A length penalty would make a difference where there is none, and clipping would hide one."""
    shaping = Shaping(clip=(0.0, 1.0), overlong_share=1.0, overlong_penalty=5.0)
    algorithm = GRPO(shaping=shaping, dynamic_sampling=DynamicSampling(enabled=True))
    workers = UnevenLengths(scores={0: (0.0, 0.0), 1: (7.0, 1.0)})
    taken = stream(workers, algorithm=algorithm).take(version=0)
    assert draws_of(taken) == [1, 2, 3, 4] and taken.dropped == Counter(all_wrong=1)


class UnevenLengths(FakeWorkers):
    def summary(self, request: GroupRequest) -> GroupSummary:
        return replace(super().summary(request), action_tokens_G=np.arange(1, 1 + request.num_samples))


def test_without_dynamic_sampling_uniform_groups_are_learned_from_too() -> None:
    taken = stream(FakeWorkers(scores=all_wrong_but())).take(version=0)
    assert draws_of(taken) == [0, 1, 2, 3] and taken.dropped == Counter()


@pytest.mark.parametrize("staleness", [1, 2])
def test_replacing_groups_makes_none_of_them_too_old(staleness: int) -> None:
    uniform = scores_of(dict.fromkeys((0, 3, 4, 5, 9, 17, 18, 19, 20, 30), "all_right"))
    workers = FakeWorkers(scores=uniform)
    own = stream(workers, staleness=staleness, algorithm=dynamic())
    for version in range(6):
        taken = take(own, workers, version=version)
        assert len(taken.groups) == 4
        assert all(0 <= version - group.summary.oldest_version <= staleness for group in taken.groups)


# ----------------------------------------------------------------------------- running ahead


def test_the_last_step_leaves_nothing_in_flight() -> None:
    workers = FakeWorkers()
    own = stream(workers, staleness=2, steps=5)
    for version in range(5):
        take(own, workers, version=version)
    assert workers.draws == list(range(20)) and own.next_draw == 20


class InFlight(Shuffled):
    """Groups that are written while weights change: the longer they take, the more versions have a part in them."""

    def wait(self, refs: list[Ref], *, verb: str) -> list[GroupSummary]:
        late = [request for request in self.asked if request.draw not in self._ready]
        for request in late:
            if self._order.random() < 0.3 or any(ref.request.draw == request.draw for ref in refs):
                versions = range(self._sampled_by[request.draw], self.version + 1)
                own = dict.fromkeys(versions, 3)
                self._ready[request.draw] = replace(self.summary(request), tokens_by_version=own)
        return [self._ready[ref.request.draw] for ref in refs]


@settings(max_examples=60, deadline=None)
@given(uniform=SCORES, staleness=st.integers(0, 4), pace=st.integers(0, 1000), most=st.sampled_from([0, 1, 3]))
def test_no_token_is_older_than_allowed_whatever_weights_came_while_it_was_written(
    uniform: dict[int, str], staleness: int, pace: int, most: int
) -> None:
    workers = InFlight(random.Random(pace), scores=scores_of(uniform))
    algorithm = dynamic(max_batches=most, exhausted=Exhausted.FILL)
    own = stream(workers, staleness=staleness, algorithm=algorithm, steps=8)
    seen: list[int] = []
    for version in range(8):
        taken = take(own, workers, version=version)
        assert len(taken.groups) == 4 and "stale" not in taken.dropped
        for item in (*taken.groups, *(passed.taken for passed in taken.passed_over)):
            assert all(0 <= version - written <= staleness for written in item.summary.tokens_by_version)
            seen.append(item.summary.draw)
    assert sorted(seen) == list(range(own.next_draw)), "every draw once"


@settings(max_examples=60, deadline=None)
@given(
    uniform=SCORES,
    staleness=st.integers(0, 3),
    pace=st.integers(0, 100),
    stop=st.integers(1, 5),
    most=st.sampled_from([0, 1, 2]),
)
def test_whoever_goes_on_after_a_kill_learns_from_each_draw_that_nobody_learned_from(
    uniform: dict[int, str], staleness: int, pace: int, stop: int, most: int
) -> None:
    """What was in flight is asked again, under the weights that are served then, and nothing else is."""
    algorithm = dynamic(max_batches=most, exhausted=Exhausted.FILL)
    scores = scores_of(uniform)

    def run(*, first: int, last: int, next_draw: int) -> tuple[list[Taken], int]:
        workers = Shuffled(random.Random(pace), scores=scores)
        own = stream(workers, algorithm=algorithm, staleness=staleness, next_draw=next_draw, steps=7)
        taken = [take(own, workers, version=version) for version in range(first, last)]
        return taken, own.next_draw

    whole, _ = run(first=0, last=7, next_draw=0)
    before, standing = run(first=0, last=stop, next_draw=0)
    after, _ = run(first=stop, last=7, next_draw=standing)
    assert [draws_of(step) for step in before + after] == [draws_of(step) for step in whole]
    for version, step in enumerate(before + after):
        assert all(0 <= version - group.summary.oldest_version <= staleness for group in step.groups)


def test_the_draws_of_a_run_that_runs_ahead_are_those_of_one_that_does_not() -> None:
    runs = []
    for staleness in (0, 1, 4):
        workers = Shuffled(random.Random(staleness), scores=scores_of({3: "all_right", 9: "all_wrong"}))
        own = stream(workers, staleness=staleness, algorithm=dynamic(), steps=5)
        runs.append([draws_of(take(own, workers, version=version)) for version in range(5)])
    assert runs[0] == runs[1] == runs[2]


def test_a_step_that_ends_without_all_of_its_groups_makes_none_of_the_others_too_old() -> None:
    """Of 4 groups a step may look at 4: had it asked for others in place of the 3 that teach nothing, these would have
    moved up to the step after the next."""
    workers = FakeWorkers(scores=scores_of(dict.fromkeys((0, 1, 2), "all_wrong")))
    own = stream(workers, staleness=1, algorithm=dynamic(max_batches=1))
    seen = [take(own, workers, version=version) for version in range(3)]
    assert [draws_of(step) for step in seen] == [[3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert all(version - g.summary.oldest_version <= 1 for version, step in enumerate(seen) for g in step.groups)


def test_an_engine_that_serves_older_weights_than_it_confirmed_stops_the_run() -> None:
    class Forgetful(FakeWorkers):
        def generate(self, request: GroupRequest) -> Ref:
            ref = super().generate(request)
            self._sampled_by[request.draw] -= request.draw == 6
            return ref

    workers = Forgetful()
    own = stream(workers)
    take(own, workers, version=0)
    with pytest.raises(WrongWeights, match=r"draw 6 .* version 1, .* version 0"):
        take(own, workers, version=1)


# ----------------------------------------------------------------------------- oversampling


class Ready(FakeWorkers):
    """Groups are ready in an order that is given: the draws of `late` last."""

    def __init__(self, late: set[int]) -> None:
        super().__init__()
        self._late = late

    def wait_for_one(self, refs: list[Ref], *, verb: str) -> int:
        return min(range(len(refs)), key=lambda index: (refs[index].request.draw in self._late, index))


def test_oversampling_learns_from_what_is_ready_first_and_cuts_the_rest_off() -> None:
    workers = Ready(late={0, 2, 7})
    own = stream(workers, oversampling=1.5)
    first, second = (take(own, workers, version=version) for version in range(2))
    assert draws_of(first) == [1, 3, 4, 5] and draws_of(second) == [6, 8, 9, 10]
    assert workers.cut == [0, 2, 7, 11] and workers.draws == list(range(12)) and own.next_draw == 12
    assert first.dropped == second.dropped == Counter(cut_off=2)
    assert (first.cut_tokens, first.drawn, first.carried) == (10, 4, 0)


def test_without_oversampling_nobody_is_asked_who_is_first_and_nothing_is_cut_off() -> None:
    class Strict(FakeWorkers):
        def wait_for_one(self, refs: list[Ref], *, verb: str) -> int:
            raise AssertionError

        cut_off = wait_for_one

    workers = Strict()
    own = stream(workers)
    assert [take(own, workers, version=version).cut_tokens for version in range(3)] == [0, 0, 0]


# ----------------------------------------------------------------------------- longest first


class Long(FakeWorkers):
    """A prompt's responses are as long as its number says."""

    def summary(self, request: GroupRequest) -> GroupSummary:
        long = np.full(request.num_samples, 1 + request.prompt.token_ids[0])
        return replace(super().summary(request), length_G=long)


@pytest.mark.parametrize(("max_running", "sorts"), [(19, True), (20, False)])
def test_where_not_all_can_be_decoded_at_once_the_longest_of_the_last_epoch_start_first(
    max_running: int, sorts: bool
) -> None:
    workers = Long()
    own = stream(workers, per_step=10, max_running=max_running)
    for version in range(3):
        assert draws_of(take(own, workers, version=version)) == list(range(10 * version, 10 * version + 10))
    asked = [request.prompt.token_ids[0] for request in workers.asked]
    assert workers.draws[:10] == list(range(10)), "nothing is known of them yet"
    for epoch in (asked[10:20], asked[20:]):
        assert (epoch == sorted(epoch, reverse=True)) == sorts


# ----------------------------------------------------------------------------- the ledger


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 5),
    staleness=st.integers(0, 4),
    steps=st.integers(1, 8),
    dropped=st.sets(st.integers(0, 60), max_size=20),
    lost=st.sets(st.integers(0, 60), max_size=5),
    batches=st.sampled_from([1, 2, math.inf]),
    swaps=st.randoms(use_true_random=False),
)
def test_the_ledger_counts_every_draw_once_and_lets_none_grow_too_old(
    size: int, staleness: int, steps: int, dropped: set[int], lost: set[int], batches: float, swaps: random.Random
) -> None:
    """A plain model of it beside it: groups are passed over or cut off, steps end early, and weights change while
    responses are written."""
    limit = batches * size
    ledger = ledger_of(size=size, staleness=staleness)
    asked: dict[int, int] = {}
    fate: dict[int, str] = {}
    for version in range(steps):
        kept: list[int] = []
        judged = 0
        while len(kept) < size and judged < limit:
            due = min(size - len(kept), limit - judged)
            for _ in range(ledger.room(due=due, later_steps=steps - version - 1)):
                draw = ledger.admit(version=version)
                assert draw.number == len(asked) and draw.number not in fate
                asked[draw.number] = version
            assert list(ledger.in_flight) == sorted(set(asked) - set(fate))
            number = ledger.oldest
            written_since = swaps.randint(asked[number], version)
            draw, judged = ledger.settle(number), judged + 1
            with pytest.raises(KeyError):
                ledger.settle(number)
            if number in lost:
                fate[number] = "cut off"
                continue
            ledger.check_weights(draw, oldest_version=written_since, version=version)
            with pytest.raises(WrongWeights, match="older than"):
                ledger.check_weights(draw, oldest_version=asked[number], version=asked[number] + staleness + 1)
            with pytest.raises(WrongWeights, match="did not take"):
                ledger.check_weights(draw, oldest_version=asked[number] - 1, version=version)
            fate[number] = "passed over" if number in dropped else "kept"
            kept += [number] * (fate[number] == "kept")
        assert kept == sorted(kept) and ledger.next_draw == max(fate) + 1 == len(fate)
    assert set(fate) | set(ledger.in_flight) == set(asked) and not set(fate) & set(ledger.in_flight)
    if limit == math.inf:
        assert not ledger.in_flight and sum(own == "kept" for own in fate.values()) == size * steps


def ledger_of(*, size: int = 4, staleness: int = 0) -> Ledger:
    return Ledger(Shuffle(num_rows=10, seed=1), next_draw=0, groups_per_step=size, max_staleness=staleness)


def rows(count: int, *, prompts: int, seed: int, start: int = 0) -> list[int]:
    shuffle = Shuffle(num_rows=prompts, seed=seed)
    return [shuffle.row(draw) for draw in range(start, start + count)]


@settings(max_examples=50, deadline=None)
@given(prompts=st.integers(1, 60), seed=st.integers(0, 2**31), epochs=st.integers(1, 4))
def test_an_epoch_visits_every_prompt_exactly_once(prompts: int, seed: int, epochs: int) -> None:
    sequence = rows(prompts * epochs, prompts=prompts, seed=seed)
    for epoch in range(epochs):
        assert sorted(sequence[epoch * prompts : (epoch + 1) * prompts]) == list(range(prompts))


@settings(max_examples=50, deadline=None)
@given(prompts=st.integers(1, 40), seed=st.integers(0, 2**31), start=st.integers(0, 130))
def test_an_order_that_is_asked_late_is_what_it_would_have_been(prompts: int, seed: int, start: int) -> None:
    assert rows(50, prompts=prompts, seed=seed, start=start) == rows(start + 50, prompts=prompts, seed=seed)[start:]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = []
    for seed in range(4):
        sequence = rows(300, prompts=100, seed=seed)
        orders += [tuple(sequence[start : start + 100]) for start in (0, 100, 200)]
    assert len(set(orders)) == len(orders)
    assert tuple(range(100)) not in orders


# ----------------------------------------------------------------------------- seeds of samples


def sample_seeds(seeds: range, draws: range, samples: range) -> list[int]:
    return [
        GroupRequest(
            prompt=PROMPTS[0], draw=draw, num_samples=1, seed=seed, sampling=None, with_greedy=False
        ).sample_seed(sample)
        for seed in seeds
        for draw in draws
        for sample in samples
    ]


def test_a_hundred_thousand_samples_share_no_seed_and_every_seed_fits_63_bits() -> None:
    seeds = sample_seeds(range(4), range(500), range(50))
    assert len(set(seeds)) == len(seeds) == 100_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_of_neighbours_are_unrelated() -> None:
    """Half of the 63 bits differ between neighbours, whichever of the three numbers moves; each bit as often."""
    seeds = np.array(sample_seeds(range(10), range(20), range(20)), dtype=np.uint64).reshape(10, 20, 20)
    for axis in range(3):
        one, next_one = np.delete(seeds, -1, axis=axis), np.delete(seeds, 0, axis=axis)
        changed = (one ^ next_one).ravel()
        bits = (changed[:, None] >> np.arange(63, dtype=np.uint64)) & np.uint64(1)
        assert abs(bits.mean() - 0.5) < 0.005
        assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05


def test_the_seed_of_a_sample_is_the_same_in_every_version() -> None:
    """A run that is resumed by a later version must sample the same."""
    [seed] = sample_seeds(range(3, 4), range(7, 8), range(2, 3))
    assert seed == 5627124850880405400
