"""The stream: which draws a step admits, takes and passes over, whatever the workers' pace."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rollout_stream import Ledger, RewardsFailed, RolloutStream
from rewards.score import Failure, FailureKind
from workers.config import RewardConfig, RolloutConfig
from workers.records import GroupRequest, GroupSummary, Prompt

PROMPTS = tuple(Prompt(id=f"p{n}", messages=(), token_ids=(n,), answer="", row={}) for n in range(10))
FAILURE = Failure(kind=FailureKind.TIMEOUT, reason="no answer within 10 s")
Judge = Callable[[GroupRequest], tuple[Failure, ...]]


@dataclass(frozen=True)
class Ref:
    """A reference that is ready when the workers say so."""

    request: GroupRequest
    is_summary: bool


class FakeWorkers:
    """Generates and scores at once, and keeps record of it. Its own rollout group, its own reward group."""

    def __init__(self, judge: Judge = lambda request: ()) -> None:
        self.rollout = self.reward = self
        self.asked: list[GroupRequest] = []
        self.waited: list[int] = []
        self._judge = judge

    def generate(self, request: GroupRequest) -> GroupRequest:
        self.asked.append(request)
        return request

    def score(self, rollouts: GroupRequest, *, draw: int) -> tuple[Ref, Ref]:
        assert draw == rollouts.draw
        return Ref(rollouts, is_summary=False), Ref(rollouts, is_summary=True)

    def wait(self, refs: list[Ref], *, verb: str) -> list[GroupSummary]:
        assert all(ref.is_summary for ref in refs)
        self.waited += [ref.request.draw for ref in refs]
        return [summary(ref.request, self._judge(ref.request)) for ref in refs]

    @property
    def draws(self) -> list[int]:
        return [request.draw for request in self.asked]


def summary(request: GroupRequest, failures: tuple[Failure, ...]) -> GroupSummary:
    size = request.num_samples
    score_G = np.where(np.arange(size) < len(failures), np.nan, 1.0)
    count_G = np.full(size, 3)
    return GroupSummary(
        draw=request.draw, prompt_id=request.prompt.id, score_G=score_G, length_G=count_G, action_tokens_G=count_G,
        prompt_length=1, truncated_G=np.zeros(size, dtype=bool), version=0, failures=failures, parts={}, judging_s=0.0,
    )  # fmt: skip


def stream(
    workers: FakeWorkers,
    *,
    per_step: int = 4,
    staleness: int = 0,
    keep: Callable[[GroupSummary], str | None] = lambda summary: None,
    max_failed_share: float = 0.0,
    seed: int = 1,
    next_draw: int = 0,
    accepted: int = 0,
) -> RolloutStream:
    rollout = RolloutConfig(
        prompts_per_step=per_step, responses_per_prompt=2, max_staleness=staleness, max_response_tokens=6
    )
    reward = RewardConfig(max_failed_share=max_failed_share)
    return RolloutStream(
        PROMPTS, workers, rollout=rollout, reward=reward, keep=keep, seed=seed, next_draw=next_draw, accepted=accepted
    )


def drop(*draws: int) -> Callable[[GroupSummary], str | None]:
    return lambda summary: "too easy" if summary.draw in draws else None


def draws_of(taken: object) -> list[int]:
    return [group.summary.draw for group in taken.groups]


# ----------------------------------------------------------------------------- taking


def test_a_step_asks_for_exactly_what_it_learns_from_and_takes_it_in_draw_order() -> None:
    workers = FakeWorkers()
    own = stream(workers)
    for step in range(3):
        taken = own.take(version=step)
        assert draws_of(taken) == workers.draws[4 * step :] == list(range(4 * step, 4 * step + 4))
        assert own.next_draw == 4 * (step + 1)
        assert taken.dropped == Counter()
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


def test_dropped_groups_are_replaced_by_the_next_draws_and_counted_by_reason() -> None:
    reasons = {0: "too easy", 1: "too easy", 4: "too hard"}
    workers = FakeWorkers()
    own = stream(workers, keep=lambda summary: reasons.get(summary.draw))
    taken = own.take(version=0)
    assert draws_of(taken) == [2, 3, 5, 6]
    assert taken.dropped == Counter({"too easy": 2, "too hard": 1})
    assert workers.draws == list(range(7)) and own.next_draw == 7
    second = own.take(version=1)
    assert draws_of(second) == [7, 8, 9, 10] and second.dropped == Counter()


@settings(max_examples=30, deadline=None)
@given(dropped=st.sets(st.integers(0, 40), max_size=15), staleness=st.integers(0, 2))
def test_every_draw_is_asked_for_once_and_taken_or_dropped_once(dropped: set[int], staleness: int) -> None:
    workers = FakeWorkers()
    own = stream(workers, keep=drop(*dropped), staleness=staleness)
    taken = [own.take(version=step) for step in range(4)]
    kept = [draw for step in taken for draw in draws_of(step)]
    assert workers.draws == list(range(own.next_draw))
    assert kept == [draw for draw in workers.waited if draw not in dropped]
    assert sum(step.dropped.total() for step in taken) == len(workers.waited) - len(kept)
    assert [len(step.groups) for step in taken] == [4] * 4


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_no_group_is_asked_for_so_early_that_it_grows_too_old(staleness: int) -> None:
    workers = FakeWorkers()
    own = stream(workers, staleness=staleness)
    asked_at: dict[int, int] = {}
    for version in range(5):
        taken = own.take(version=version)
        asked_at |= {draw: version for draw in workers.draws if draw not in asked_at}
        assert all(version - asked_at[draw] <= staleness for draw in draws_of(taken))
        assert len(workers.asked) == (staleness + version + 1) * 4
    assert max(asked_at.values()) == 4


def test_the_same_groups_are_learned_from_whatever_order_they_arrive_in() -> None:
    class Shuffled(FakeWorkers):
        """Groups become ready in an order of chance; a wait for one is answered when its turn has come."""

        def __init__(self, order: random.Random) -> None:
            super().__init__()
            self._order, self._ready = order, {}

        def wait(self, refs: list[Ref], *, verb: str) -> list[GroupSummary]:
            late = [request for request in self.asked if request.draw not in self._ready]
            self._order.shuffle(late)
            while any(ref.request.draw not in self._ready for ref in refs):
                request = late.pop()
                self._ready[request.draw] = summary(request, ())
            return [self._ready[ref.request.draw] for ref in refs]

    runs = []
    for pace in range(5):
        own = stream(Shuffled(random.Random(pace)), keep=drop(1, 6))
        runs.append([[(g.summary.draw, g.summary.prompt_id) for g in own.take(version=v).groups] for v in range(3)])
    assert all(run == runs[0] for run in runs)


def test_a_resumed_stream_goes_on_where_the_first_one_stood() -> None:
    whole_workers, resumed_workers = FakeWorkers(), FakeWorkers()
    whole = stream(whole_workers, keep=drop(2, 9, 13))
    steps = [whole.take(version=step) for step in range(2)]
    standing = whole.next_draw
    steps += [whole.take(version=step) for step in range(2, 5)]
    resumed = stream(resumed_workers, keep=drop(2, 9, 13), next_draw=standing, accepted=2 * 4)
    again = [resumed.take(version=step) for step in range(2, 5)]
    assert [draws_of(step) for step in again] == [draws_of(step) for step in steps[2:]]
    assert resumed_workers.asked == whole_workers.asked[standing:]


# ----------------------------------------------------------------------------- failures


def test_failures_up_to_the_allowed_share_pass() -> None:
    workers = FakeWorkers(lambda request: (FAILURE,) if request.draw in (1, 3) else ())
    taken = stream(workers, max_failed_share=0.25).take(version=0)  # 2 of 4 x 2
    assert draws_of(taken) == [0, 1, 2, 3]
    assert sum(len(group.summary.failures) for group in taken.groups) == 2


def test_one_failure_more_stops_the_run_and_says_how_many_of_what_and_why() -> None:
    crash = Failure(kind=FailureKind.CRASH, reason="signal 11")
    failures = {0: (FAILURE,), 1: (crash, crash)}
    workers = FakeWorkers(lambda request: failures.get(request.draw, ()))
    with pytest.raises(RewardsFailed) as caught:
        stream(workers, max_failed_share=0.25).take(version=0)
    message = str(caught.value)
    for words in ("3 responses", "1 x timeout", "2 x crash", "allows 2", "no answer within 10 s"):
        assert words in message
    assert "signal 11" not in message


def test_failures_in_dropped_groups_count_too() -> None:
    workers = FakeWorkers(lambda request: (FAILURE,))
    with pytest.raises(RewardsFailed):
        stream(workers, keep=lambda summary: "unjudged", max_failed_share=0.25).take(version=0)


def test_failures_of_one_step_are_forgotten_in_the_next() -> None:
    own = stream(FakeWorkers(lambda request: (FAILURE,) if request.draw % 4 < 2 else ()), max_failed_share=0.25)
    for step in range(5):
        assert len(own.take(version=step).groups) == 4


# ----------------------------------------------------------------------------- the ledger


def admitted(count: int, *, prompts: int, seed: int, next_draw: int = 0) -> list[tuple[int, int]]:
    ledger = Ledger(num_prompts=prompts, seed=seed, next_draw=next_draw)
    return [ledger.admit() for _ in range(count)]


@settings(max_examples=50, deadline=None)
@given(prompts=st.integers(1, 60), seed=st.integers(0, 2**31), epochs=st.integers(1, 4))
def test_an_epoch_visits_every_prompt_exactly_once(prompts: int, seed: int, epochs: int) -> None:
    sequence = admitted(prompts * epochs, prompts=prompts, seed=seed)
    assert [draw for draw, _ in sequence] == list(range(prompts * epochs))
    for epoch in range(epochs):
        visited = [prompt for _, prompt in sequence[epoch * prompts : (epoch + 1) * prompts]]
        assert sorted(visited) == list(range(prompts))


@settings(max_examples=50, deadline=None)
@given(prompts=st.integers(1, 40), seed=st.integers(0, 2**31), start=st.integers(0, 130))
def test_a_ledger_that_starts_late_says_what_the_first_would_have_said(prompts: int, seed: int, start: int) -> None:
    whole = admitted(start + 50, prompts=prompts, seed=seed)
    assert admitted(50, prompts=prompts, seed=seed, next_draw=start) == whole[start:]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = []
    for seed in range(4):
        sequence = [prompt for _, prompt in admitted(300, prompts=100, seed=seed)]
        orders += [tuple(sequence[start : start + 100]) for start in (0, 100, 200)]
    assert len(set(orders)) == len(orders)
    assert tuple(range(100)) not in orders


# ----------------------------------------------------------------------------- seeds of samples


def sample_seeds(seeds: range, draws: range, samples: range) -> list[int]:
    return [
        GroupRequest(prompt=PROMPTS[0], draw=draw, num_samples=1, seed=seed, sampling=None).sample_seed(sample)
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
