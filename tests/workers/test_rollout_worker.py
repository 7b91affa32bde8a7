"""The rollout worker's thread, around an engine of ten lines whose every move is known."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from workers import rollout_worker
from workers.records import Completion, Group, GroupRequest, Prompt, Sampling, Span, Stop, WeightManifest
from workers.rollout_worker import CompletionRequest, CutOff, RolloutWorker

PATIENCE_S = 5.0
MANY = 1000
MANIFEST = WeightManifest(version=4, path="", entries=(), checksum="")


class FakeEngine:
    """One token a step for whoever waits; a request ends after as many tokens as its limit says."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[CompletionRequest, int]] = {}
        self.log: list[str] = []
        self.gate = threading.Event()
        """A step waits for it, so that a test can have things happen during a step."""
        self.gate.set()
        self.stepping = threading.Event()
        self.version = 0

    def add(self, request: CompletionRequest) -> None:
        if request.token_ids == (13,):
            raise ValueError("this prompt is too long")
        self.log.append("add")
        self.running[request.id] = (request, 0)

    def step(self) -> list[tuple[str, Completion]]:
        self.stepping.set()
        assert self.gate.wait(PATIENCE_S)
        self.log.append("step")
        if any(request.token_ids == (666,) for request, _ in self.running.values()):
            raise MemoryError("the engine is broken")
        self.running = {key: (request, done + 1) for key, (request, done) in self.running.items()}
        ended = [key for key, (request, done) in self.running.items() if done == lengths(request)]
        return [(key, self._completion(self.running.pop(key)[0])) for key in ended]

    def _completion(self, request: CompletionRequest) -> Completion:
        length = lengths(request)
        return Completion(
            token_ids=np.full(length, request.seed % 1000, dtype=np.int32),
            logprobs=np.zeros(length, dtype=np.float32),
            spans=(Span(start=0, end=length, sampled=True, version=self.version),),
            stop=Stop.LENGTH,
        )

    def is_busy(self) -> bool:
        return bool(self.running)

    def abort(self, request_id: str) -> int:
        _, done = self.running.pop(request_id)
        return done

    def load_weights(self, manifest: WeightManifest) -> str:
        if manifest.version < 0:
            raise ArithmeticError("weights did not arrive")
        self.log.append("load")
        self.version = manifest.version
        return "receipt"

    def sleep(self) -> None:
        self.log.append("sleep")

    def wake(self) -> None:
        self.log.append("wake")

    def decode(self, token_ids: np.ndarray, *, show_special: bool) -> str:
        return f"seed {token_ids[0]}"


def lengths(request: CompletionRequest) -> int:
    """Each request's own, so that siblings end in another order than they were asked for."""
    return 1 + request.seed % request.sampling.max_tokens


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def worker(engine: FakeEngine) -> Iterator[RolloutWorker]:
    with contextlib.closing(RolloutWorker(lambda: engine, max_running=MANY)) as worker:
        yield worker


def request(
    draw: int = 0,
    *,
    samples: int = 5,
    max_tokens: int = 7,
    tokens: tuple[int, ...] = (5,),
    with_greedy: bool = False,
) -> GroupRequest:
    prompt = Prompt(id=f"prompt-{draw}", messages=(), token_ids=tokens, answer="", row={}, from_text=True)
    sampling = Sampling(temperature=1.0, max_tokens=max_tokens)
    return GroupRequest(
        prompt=prompt, draw=draw, num_samples=samples, seed=3, sampling=sampling, with_greedy=with_greedy
    )


@contextlib.contextmanager
def during_a_step(engine: FakeEngine) -> Iterator[None]:
    """The block runs while the engine is in the middle of a step."""
    engine.gate.clear()
    assert engine.stepping.wait(PATIENCE_S)
    yield
    engine.gate.set()


def is_the_answer_to(asked: GroupRequest, group: Group) -> bool:
    seeds = [asked.sample_seed(sample) % 1000 for sample in range(asked.num_samples)]
    return (
        [rollout.sample for rollout in group.rollouts] == list(range(asked.num_samples))
        and [int(rollout.token_ids[0]) for rollout in group.rollouts] == seeds
        and [rollout.text for rollout in group.rollouts] == [f"seed {seed}" for seed in seeds]
        and all(rollout.draw == asked.draw and rollout.prompt is asked.prompt for rollout in group.rollouts)
        and (group.greedy is not None) == asked.with_greedy
    )


def test_a_group_comes_back_in_sample_order_though_samples_end_out_of_order(worker: RolloutWorker) -> None:
    asked = request()
    group = worker.generate(asked).result(PATIENCE_S)
    ends = [len(rollout.token_ids) for rollout in group.rollouts]
    assert ends != sorted(ends)
    assert is_the_answer_to(asked, group)


def test_the_greedy_response_comes_beside_the_siblings_which_are_the_same_with_and_without_it(
    engine: FakeEngine, worker: RolloutWorker
) -> None:
    seen: list[CompletionRequest] = []
    add = engine.add
    engine.add = lambda one: (seen.append(one), add(one))
    without = worker.generate(request()).result(PATIENCE_S)
    siblings_alone = [(one.seed, one.sampling) for one in seen]
    seen.clear()
    asked = request(with_greedy=True)
    group = worker.generate(asked).result(PATIENCE_S)
    assert is_the_answer_to(asked, group)
    assert [(one.seed, one.sampling) for one in seen[:-1]] == siblings_alone
    assert seen[-1].sampling == Sampling(temperature=0.0, max_tokens=7)
    assert [r.token_ids.tolist() for r in group.rollouts] == [r.token_ids.tolist() for r in without.rollouts]
    assert group.greedy.draw == asked.draw and group.greedy.prompt is asked.prompt


def test_a_group_waits_for_its_greedy_response_too(engine: FakeEngine, worker: RolloutWorker) -> None:
    asked = request(samples=1, max_tokens=50, with_greedy=True)
    ends = [1 + asked.sample_seed(sample) % 50 for sample in (0, 1)]
    assert ends[0] < ends[1], "the greedy one ends last"
    group = worker.generate(asked).result(PATIENCE_S)
    assert [len(group.rollouts[0].token_ids), len(group.greedy.token_ids)] == ends


def test_a_group_waits_for_its_last_sibling_and_not_for_other_groups(engine: FakeEngine, worker: RolloutWorker) -> None:
    engine.gate.clear()
    long, short = request(0, max_tokens=50), request(1, max_tokens=2)
    slow, quick = worker.generate(long), worker.generate(short)
    answers: list[str] = []
    slow.add_done_callback(lambda _: answers.append("slow"))
    quick.add_done_callback(lambda _: answers.append("quick"))
    engine.gate.set()
    assert is_the_answer_to(long, slow.result(PATIENCE_S)) and is_the_answer_to(short, quick.result(PATIENCE_S))
    assert answers == ["quick", "slow"]


def test_groups_that_are_asked_for_one_after_the_other_begin_together(
    engine: FakeEngine, worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_worker, "COME_TOGETHER_S", 0.5)
    groups = []
    for draw in range(3):
        groups.append(worker.generate(request(draw, samples=2)))
        time.sleep(0.01)
    for group in groups:
        group.result(PATIENCE_S)
    assert engine.log[:7] == ["add"] * 6 + ["step"]


def test_an_engine_that_decodes_waits_for_nobody(
    engine: FakeEngine, worker: RolloutWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = worker.generate(request(0, max_tokens=50))
    with during_a_step(engine):
        monkeypatch.setattr(rollout_worker, "COME_TOGETHER_S", 2 * PATIENCE_S)
        later = worker.generate(request(1))
    later.result(PATIENCE_S)
    running.result(PATIENCE_S)


def test_the_same_draw_asked_for_twice_at_once_is_answered_twice(worker: RolloutWorker) -> None:
    asked = request()
    for future in [worker.generate(asked), worker.generate(asked)]:
        assert is_the_answer_to(asked, future.result(PATIENCE_S))


def test_commands_run_between_steps_and_the_running_requests_go_on(engine: FakeEngine, worker: RolloutWorker) -> None:
    generating = worker.generate(request())
    with during_a_step(engine):
        commands: list[Future] = [worker.wake(), worker.load_weights(MANIFEST)]
        assert not any(command.done() for command in commands)
    assert [command.result(PATIENCE_S) for command in commands] == [None, "receipt"]
    assert generating.result(PATIENCE_S).rollouts[0].spans[0].version == 4
    at = engine.log.index("wake")
    assert engine.log[at - 1 : at + 3] == ["step", "wake", "load", "step"]


def test_what_has_not_ended_when_an_engine_is_put_to_sleep_never_will(
    engine: FakeEngine, worker: RolloutWorker
) -> None:
    generating = worker.generate(request())
    with during_a_step(engine):
        sleeping = worker.sleep()
    sleeping.result(PATIENCE_S)
    with pytest.raises(CutOff):
        generating.result(PATIENCE_S)


def test_a_command_that_fails_fails_its_caller_alone(engine: FakeEngine, worker: RolloutWorker) -> None:
    asked = request()
    generating = worker.generate(asked)
    bad = WeightManifest(version=-1, path="", entries=(), checksum="")
    with pytest.raises(ArithmeticError, match="did not arrive"):
        worker.load_weights(bad).result(PATIENCE_S)
    assert is_the_answer_to(asked, generating.result(PATIENCE_S))


def test_a_request_that_the_engine_refuses_fails_its_caller_alone(worker: RolloutWorker) -> None:
    asked = request(1)
    futures = [worker.generate(request(0, tokens=(13,))), worker.generate(asked)]
    with pytest.raises(ValueError, match="too long"):
        futures[0].result(PATIENCE_S)
    assert is_the_answer_to(asked, futures[1].result(PATIENCE_S))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_engine_fails_everybody_who_waits_and_everybody_who_comes_later(
    engine: FakeEngine, worker: RolloutWorker
) -> None:
    engine.gate.clear()
    waiting: list[Future] = [worker.generate(request(0, max_tokens=90)), worker.generate(request(1, tokens=(666,)))]
    assert engine.stepping.wait(PATIENCE_S)
    waiting += [worker.load_weights(MANIFEST), worker.generate(request(2))]  # queued while the fatal step runs
    engine.gate.set()
    for future in [*waiting[:2], *waiting[3:]]:
        with pytest.raises(MemoryError, match="broken"):
            future.result(PATIENCE_S)
    later: list[Callable[[], Future]] = [lambda: worker.generate(request(3)), worker.sleep]
    for ask in later:
        with pytest.raises(MemoryError, match="broken"):
            ask().result(PATIENCE_S)


def test_a_full_engine_gets_the_next_request_when_one_has_ended(engine: FakeEngine) -> None:
    most: list[int] = []
    step = engine.step
    engine.step = lambda: (most.append(len(engine.running)), step())[1]
    asked = [request(draw, samples=3, max_tokens=9) for draw in range(4)]
    with contextlib.closing(RolloutWorker(lambda: engine, max_running=2)) as worker:
        engine.gate.clear()
        futures = [worker.generate(one) for one in asked]
        engine.gate.set()
        groups = [future.result(PATIENCE_S) for future in futures]
    assert all(is_the_answer_to(one, group) for one, group in zip(asked, groups, strict=True))
    tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    # Two at a time, and no step with a free slot while others wait.
    last = max(len(rollout.token_ids) for rollout in groups[-1].rollouts)
    assert max(most) == 2 and len(most) <= tokens / 2 + last


def test_what_waits_for_a_slot_begins_under_the_weights_that_are_then_served(engine: FakeEngine) -> None:
    begun: dict[int, int] = {}
    add = engine.add
    engine.add = lambda one: (begun.update({one.token_ids[0]: engine.version}), add(one))[1]
    with contextlib.closing(RolloutWorker(lambda: engine, max_running=1)) as worker:
        first = worker.generate(request(0, samples=1, max_tokens=50, tokens=(1,)))
        with during_a_step(engine):
            second = worker.generate(request(1, samples=1, tokens=(2,)))
            loading = worker.load_weights(MANIFEST)
        assert loading.result(PATIENCE_S) == "receipt"
        first.result(PATIENCE_S), second.result(PATIENCE_S)
    assert begun == {1: 0, 2: MANIFEST.version}


def test_groups_that_are_cut_off_fail_their_callers_and_cost_nobody_else_anything(
    engine: FakeEngine, worker: RolloutWorker
) -> None:
    kept = request(0, max_tokens=90)
    generating = worker.generate(kept)
    with during_a_step(engine):
        late = [worker.generate(request(draw, samples=2, max_tokens=90)) for draw in (1, 2)]
        cutting = worker.cut_off([1, 2, 77])
    assert cutting.result(PATIENCE_S) == 0, "they had not begun"
    for future in late:
        with pytest.raises(CutOff):
            future.result(PATIENCE_S)
    assert is_the_answer_to(kept, generating.result(PATIENCE_S))
    assert not engine.running


def test_the_tokens_of_a_group_that_is_cut_off_are_counted_those_of_ended_siblings_too(
    engine: FakeEngine, worker: RolloutWorker
) -> None:
    asked = request(3, samples=2, max_tokens=60)
    ends = sorted(1 + asked.sample_seed(sample) % 60 for sample in range(2))
    assert ends[1] - ends[0] > 5
    steps = ends[0] + 3
    turns = iter(range(steps - 1))
    cutting: list[Future[int]] = []
    step = engine.step

    def step_and_cut() -> list[tuple[str, Completion]]:
        if next(turns, None) is None and not cutting:
            cutting.append(worker.cut_off([3]))
        return step()

    engine.step = step_and_cut
    with pytest.raises(CutOff):
        worker.generate(asked).result(PATIENCE_S)
    assert cutting[0].result(PATIENCE_S) == ends[0] + steps
    assert worker.cut_off([3]).result(PATIENCE_S) == 0


def test_a_refused_sibling_takes_the_others_of_its_group_out_of_the_engine(
    engine: FakeEngine, worker: RolloutWorker
) -> None:
    add, allowed = engine.add, iter(range(2))
    engine.add = lambda one: add(one) if next(allowed, None) is not None else add(replace(one, token_ids=(13,)))
    with pytest.raises(ValueError, match="too long"):
        worker.generate(request(0, max_tokens=90)).result(PATIENCE_S)
    worker.wake().result(PATIENCE_S)
    assert not engine.running


def test_an_idle_engine_is_not_stepped(engine: FakeEngine, worker: RolloutWorker) -> None:
    worker.generate(request()).result(PATIENCE_S)
    steps = engine.log.count("step")
    for _ in range(20):
        worker.wake().result(PATIENCE_S)
    assert engine.log.count("step") == steps == max(1 + request().sample_seed(sample) % 7 for sample in range(5))


def test_the_constructor_raises_what_making_the_engine_raises() -> None:
    def make_engine() -> FakeEngine:
        raise FileNotFoundError("no such model")

    with pytest.raises(FileNotFoundError, match="no such model"):
        RolloutWorker(make_engine, max_running=8)


def test_the_engine_is_made_and_used_in_one_thread_that_ends_with_the_worker() -> None:
    threads: set[threading.Thread] = set()

    class Watched(FakeEngine):
        def step(self) -> list[tuple[str, Completion]]:
            threads.add(threading.current_thread())
            return super().step()

    def make_engine() -> Watched:
        threads.add(threading.current_thread())
        return Watched()

    worker = RolloutWorker(make_engine, max_running=8)
    worker.generate(request()).result(PATIENCE_S)
    worker.close()
    [thread] = threads
    assert thread is not threading.current_thread() and not thread.is_alive()
