"""Whatever a reward returns or does: what is learned stays finite, a failure is no zero, the neighbours keep theirs.

The large versions are slow: they make ten thousand and more outputs.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reward_outputs import OUTPUTS, Case, comes_to

from engine.algorithms.grpo import GRPO
from engine.dealing import WorkModel
from engine.experience import NothingToLearn, advantages, assign
from engine.judging import reward_specs
from engine.rollout_stream import RewardsFailed, RolloutStream, TakenGroup
from engine.sizes import ModelSizes
from rewards.item import Item
from rewards.mix import Voice, mixed
from rewards.score import Failure, FailureKind, Judgement, Score, judgement_of
from rewards.spec import Isolation
from workers.config import FunctionConfig, RewardConfig, RolloutConfig
from workers.processes import descendants_of
from workers.records import (
    AlgorithmState,
    Group,
    GroupRequest,
    GroupSummary,
    Message,
    Prompt,
    Rollout,
    Span,
    Stop,
)
from workers.reward_worker import RewardWorker
from workers.scoring import RewardProcess
from workers.scoring_child import Limits

QUICK, MANY = 250, 1600
WORK = WorkModel.of(ModelSizes(), shares_prompts=False)
"""Examples of eight outputs."""
GROUPS = st.lists(OUTPUTS, min_size=8, max_size=8)
MESSAGES = (Message(role="user", content="12+34="),)
PROMPTS = tuple(
    Prompt(id=f"p{n}", messages=MESSAGES, token_ids=(3, 4), answer="46", row={}, from_text=True) for n in range(4)
)
ALL = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

FAILS = {
    "exits": FailureKind.EXCEPTION, "interrupts": FailureKind.EXCEPTION, "generator exit": FailureKind.EXCEPTION,
    "odd": FailureKind.EXCEPTION, "deep": FailureKind.EXCEPTION, "late": FailureKind.TIMEOUT,
    "loop": FailureKind.TIMEOUT, "blocks": FailureKind.TIMEOUT, "segfault": FailureKind.CRASH,
    "_exit": FailureKind.CRASH, "kills its parent": FailureKind.CRASH, "memory": FailureKind.EXCEPTION,
    "extra": FailureKind.MISSHAPED,
    "coroutine": FailureKind.MISSHAPED, "generator": FailureKind.MISSHAPED, "no float": FailureKind.EXCEPTION,
    "no repr": FailureKind.EXCEPTION, "class": FailureKind.MISSHAPED, "cycle": FailureKind.MISSHAPED,
    "lying": FailureKind.EXCEPTION, "no such": FailureKind.EXCEPTION,
}  # fmt: skip


# ----------------------------------------------------------------------------- what is learned


def rollouts(texts: Sequence[str], prompt: Prompt = PROMPTS[0], draw: int = 0) -> tuple[Rollout, ...]:
    return tuple(
        Rollout(
            prompt=prompt, draw=draw, sample=sample, text=text, token_ids=np.arange(3, dtype=np.int32),
            logprobs=np.zeros(3, dtype=np.float32), spans=(Span(start=0, end=3, sampled=True, version=0),),
            stop=Stop.END,
        )
        for sample, text in enumerate(texts)
    )  # fmt: skip


def learned(judgements: Sequence[Judgement]) -> dict[int, float]:
    """What each response that is learned from is worth to GRPO, by its number."""
    if not judgements:
        return {}
    group = Group(rollouts=rollouts([""] * len(judgements)), greedy=None, prompt_text="")
    summary = group.summary(judgements, judging_s=0.0)
    algorithm = GRPO()
    try:
        batch = assign(
            [TakenGroup(summary=summary, group=None)],
            algorithm,
            ranks=1,
            updates_per_step=1,
            horizon=64,
            work=WORK,
        )
    except NothingToLearn:
        return {}
    rows = [row for update in batch.shares[0] for row in update.rows]
    [worth], _ = advantages(batch, algorithm, AlgorithmState(kl_coef=0.0), divergence=[np.zeros(len(rows))])
    return {row.sample: float(value) for row, value in zip(rows, worth, strict=True)}


def judged(value: object) -> Judgement:
    said = judgement_of(value, name="fuzzed")
    return mixed([Voice(name="fuzzed", weight=0.5, abstains=False, said=said)])


def got(judgement: Judgement) -> float | FailureKind:
    return judgement.total if isinstance(judgement, Score) else judgement.kind


def check_group(cases: Sequence[Case]) -> None:
    judgements = [judged(case.value) for case in cases]
    for case, judgement in zip(cases, judgements, strict=True):
        expected = case.expected if isinstance(case.expected, FailureKind) else case.expected / 2
        assert comes_to(expected, got(judgement)), (case, judgement)
    worth = learned(judgements)
    assert all(map(math.isfinite, worth.values()))
    good = [place for place, judgement in enumerate(judgements) if isinstance(judgement, Score)]
    assert sorted(worth) == good
    # As if what could not be judged had never been sampled.
    without = learned([judgements[place] for place in good])
    assert list(worth.values()) == list(without.values())


@settings(ALL, max_examples=QUICK)
@given(GROUPS)
def test_weights_are_finite_and_failures_are_left_out(cases: list[Case]) -> None:
    check_group(cases)


@pytest.mark.slow
@settings(ALL, max_examples=MANY)
@given(GROUPS)
def test_weights_are_finite_and_failures_are_left_out_of_many(cases: list[Case]) -> None:
    check_group(cases)


# ----------------------------------------------------------------------------- through a process


def item(response: str, *, number: int = 0, value: object = None) -> Item:
    return Item(
        id=f"3/{number}", response=response, answer="46", prompt="12+34=", messages=(), from_text=True, token_ids=(),
        row={"value": pickle.dumps(value), "list": []},
    )  # fmt: skip


@pytest.fixture(scope="module")
def file() -> Path:
    return Path(__file__).with_name("hostile_reward.py")


def process_of(file: Path, *, timeout_s: float, isolation: Isolation = Isolation.SAMPLE) -> RewardProcess:
    specs = reward_specs(RewardConfig(function=f"{file}:hostile", isolation=isolation))
    return RewardProcess(specs, Limits(timeout_s=timeout_s, memory_gib=1.0))


@pytest.fixture(scope="module")
def process(file: Path) -> Iterator[RewardProcess]:
    with contextlib.closing(process_of(file, timeout_s=1.0)) as process:
        yield process


@pytest.fixture(scope="module")
def patient(file: Path) -> Iterator[RewardProcess]:
    """With time to import what the values are made of."""
    with contextlib.closing(process_of(file, timeout_s=60.0, isolation=Isolation.WORKER)) as process:
        yield process


def check_outputs(process: RewardProcess, cases: Sequence[Case]) -> None:
    items = [item("pickled", number=number, value=case.value) for number, case in enumerate(cases)]
    judgements = process.judge(0, items)
    for case, judgement in zip(cases, judgements, strict=True):
        assert comes_to(case.expected, got(judgement)), (case, judgement)
    honest = [place for place, judgement in enumerate(judgements) if isinstance(judgement, Score)]
    alone = process.judge(0, [items[place] for place in honest])
    assert [repr(judgements[place]) for place in honest] == [repr(judgement) for judgement in alone]


@settings(ALL, max_examples=QUICK)
@given(cases=GROUPS)
def test_outputs_arrive_as_they_are_and_neighbours_keep_theirs(patient: RewardProcess, cases: list[Case]) -> None:
    check_outputs(patient, cases)


@pytest.mark.slow
@settings(ALL, max_examples=MANY)
@given(cases=GROUPS)
def test_many_outputs_arrive_as_they_are_and_neighbours_keep_theirs(patient: RewardProcess, cases: list[Case]) -> None:
    check_outputs(patient, cases)


@pytest.mark.parametrize("way", FAILS)
def test_a_bad_call_is_a_failure_that_names_its_place_and_costs_nobody_else(process: RewardProcess, way: str) -> None:
    before, bad, after = process.judge(0, [item("honest"), item(way, number=1), item("honest", number=2)])
    assert before == after == Score(total=0.5, parts={"hostile": 0.5})
    assert isinstance(bad, Failure) and bad.kind is FAILS[way]
    assert "hostile" in bad.reason and re.search(r"hostile_reward\.py:\d+", bad.reason) and "response 3/1" in bad.reason


def test_a_call_that_stops_its_zygote_is_ended_by_the_parent(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.scoring.BACKSTOP_S", 0.3)
    with contextlib.closing(process_of(file, timeout_s=1.0)) as process:
        judgements = process.judge(0, [item("honest"), item("stops"), item("honest")])
    assert [got(judgement) for judgement in judgements] == [0.5, FailureKind.TIMEOUT, 0.5]


def test_nothing_of_a_call_reaches_the_next(process: RewardProcess) -> None:
    clean, row, _, leaked, leaked_row = process.judge(
        0, [item("world"), item("row"), item("leaks"), item("world"), item("row")]
    )
    assert isinstance(clean, Score) and leaked == clean and leaked_row == row


def test_what_a_worker_function_leaves_stays_in_its_own_process(file: Path) -> None:
    """The same function twice, under both kinds of isolation."""
    functions = {
        kind.value: FunctionConfig(function=f"{file}:hostile", isolation=kind)
        for kind in (Isolation.WORKER, Isolation.SAMPLE)
    }
    specs = reward_specs(RewardConfig(functions=functions))
    with contextlib.closing(RewardProcess(specs, Limits(timeout_s=5.0, memory_gib=1.0))) as process:
        kept = [process.judge(function, [item("keeps")] * 2) for function in (0, 1, 0, 1)]
    assert [[got(judgement) for judgement in own] for own in kept] == [[1, 2], [1, 1], [3, 4], [1, 1]]


def test_an_orphan_of_a_call_is_gone_when_the_call_is(process: RewardProcess) -> None:
    assert [got(judgement) for judgement in process.judge(0, [item("orphan"), item("honest")])] == [0.75, 0.5]
    [zygote] = [child._process.pid for child in process._children.values()]
    assert descendants_of(zygote) == set()


def test_what_a_call_prints_is_cut_and_costs_little(process: RewardProcess, capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    judgements = process.judge(0, [item("prints"), item("honest"), item("prints")])
    assert time.monotonic() - started < 3
    assert [got(judgement) for judgement in judgements] == [0.25, 0.5, 0.25]
    told = capfd.readouterr().err
    # What a call has printed may be taken only when the next one has begun: each of the three has its own room.
    shown, left_out = told.count("x"), sum(map(int, re.findall(r"printed (\d+) bytes more in one call", told)))
    assert 16 << 10 <= shown <= 3 * (16 << 10)
    assert 10**8 <= shown + left_out <= 2 * 10**8


# ----------------------------------------------------------------------------- the run


class Judged:
    """Rollouts whose texts are as planned, judged by a real reward worker: both groups of a run in one."""

    def __init__(self, worker: RewardWorker, texts: dict[int, list[str]]) -> None:
        self.rollout = self.reward = self
        self._worker, self._texts = worker, texts

    def generate(self, request: GroupRequest) -> Group:
        own = rollouts(self._texts.get(request.draw, ["honest"] * 2), request.prompt, request.draw)
        return Group(rollouts=own, greedy=None, prompt_text="12+34=")

    def score(self, group: Group, *, draw: int) -> GroupSummary:
        return self._worker.score(group)

    def wait(self, refs: list[GroupSummary], *, verb: str) -> list[GroupSummary]:
        return refs


def take(file: Path, texts: dict[int, list[str]], *, allowed: float) -> tuple[TakenGroup, ...]:
    reward = RewardConfig(function=f"{file}:hostile", processes=1, timeout_s=2.0, max_failure_fraction=allowed)
    with contextlib.closing(RewardWorker(reward_specs(reward), (), reward)) as worker:
        stream = RolloutStream(
            PROMPTS, Judged(worker, texts), rollout=RolloutConfig(prompts_per_step=4, responses_per_prompt=2),
            reward=reward, algorithm=GRPO(), seed=1, next_draw=0, carried=(), steps=1,
            list_failures=lambda step, summary: None,
        )  # fmt: skip
        return stream.take(version=0).groups


def test_above_the_allowed_share_the_run_stops_with_the_first_traceback(file: Path) -> None:
    texts = {0: ["honest", "odd"], 2: ["exits", "honest"]}
    assert len(take(file, texts, allowed=0.25)) == 4
    with pytest.raises(RewardsFailed) as caught:
        take(file, texts, allowed=0.125)
    said = str(caught.value)
    assert "2 responses of one step could not be judged (2 x exception)" in said and "SystemExit" not in said
    for words in ("response 0/1", 'raise Odd("odd")', "Odd: odd", "hostile_reward.py"):
        assert words in said
