"""However a worker fails, the message says which one, what it was to do, why, and what its own log says."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from hosted import hosting_for
from ray import ObjectRef

from workers.failures import LOG_TAIL_LINES, WorkerFailed, WorkerTimeout
from workers.group import Hosting, TrainerGroup, WorkerGroup, trainers_death_first
from workers.placement import Place
from workers.records import Metrics
from workers.stopped import RunStopped, WorkerDied
from workers.telling import telling_on_signal
from workers.vitals import RollCall

PLACES = tuple(
    Place(role=role, index=index, cpus=1.0, gpus=0.0)
    for role, count in (("policy", 3), ("rollout", 1), ("reward", 1), ("critic", 1), ("reference", 1))
    for index in range(count)
)


def fragile() -> type:
    """A class of this function's own travels to the workers whole: they cannot import this file."""

    class Fragile:
        def __init__(self, mood: str) -> None:
            for number in range(40):
                print(f"{mood} line {number}", flush=True)
            if mood == "unlucky":
                raise ValueError("no room for the cache")

        def work(self, anything: object) -> None:
            pass

        def raise_bug(self) -> None:
            raise KeyError("lost")

        def stop_run(self) -> None:
            raise RunStopped("nothing to learn from")

        def die(self) -> None:
            os._exit(3)

        def pid(self) -> int:
            return os.getpid()

        def rest(self) -> None:
            time.sleep(3.5)  # longer than a call may take

        def hang(self) -> None:
            time.sleep(60)

        def leave_a_thread(self) -> None:
            def decode() -> None:
                time.sleep(60)

            threading.Thread(target=decode, daemon=True).start()

    return Fragile


class FragileGroup(WorkerGroup):
    def call(self, name: str, index: int, *arguments: object) -> ObjectRef:
        return getattr(self._actors[index], name).remote(*arguments)


@pytest.fixture(scope="module")
def hosting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosting]:
    with hosting_for(PLACES, tmp_path_factory.mktemp("logs"), call_timeout_s=3.0) as hosting:
        yield hosting


@pytest.fixture(scope="module")
def policy(hosting: Hosting) -> FragileGroup:
    """Three; the tests about deaths come last, and each has its own victim."""
    return started(hosting, "policy", "calm", "merry", "old")


@pytest.fixture(scope="module")
def reward(hosting: Hosting) -> FragileGroup:
    return started(hosting, "reward", "just")


def started(hosting: Hosting, role: str, *moods: str) -> FragileGroup:
    """Copies that have been constructed, well or not: starting takes longer than the calls may."""
    group = FragileGroup(fragile(), hosting, role=role, arguments=[(mood,) for mood in moods])
    ray.wait([ref for _, ref in group.ready()], num_returns=len(group), timeout=60)
    return group


def told(error: BaseException) -> str:
    """As Python prints it, notes included."""
    return "".join(traceback.format_exception(error))


def quotes_the_end_of(text: str, mood: str) -> bool:
    lines = [line.strip() for line in text.splitlines()]
    first = 40 - LOG_TAIL_LINES
    return f"{mood} line 39" in lines and f"{mood} line {first}" in lines and f"{mood} line {first - 1}" not in lines


def test_a_constructor_that_raises_is_told_with_its_traceback(hosting: Hosting) -> None:
    group = started(hosting, "rollout", "unlucky")
    with pytest.raises(WorkerFailed) as caught:
        group.wait([ref for _, ref in group.ready()], verb="start")
    text = str(caught.value)
    assert text.splitlines()[0] == "rollout 0 failed while it was to start: ValueError: no room for the cache"
    assert text.count('raise ValueError("no room for the cache")') == 1
    assert quotes_the_end_of(text, "unlucky")


def test_a_bug_in_a_call_keeps_its_type_and_shows_where_it_was_raised(policy: FragileGroup) -> None:
    with pytest.raises(KeyError) as caught:
        policy.wait([policy.call("work", 0, 1), policy.call("raise_bug", 1)], verb="update")
    text = told(caught.value)
    assert "KeyError: 'lost'" in text and "raised by policy 1 while it was to update" in text
    assert 'raise KeyError("lost")' in text and "\x1b" not in text
    assert quotes_the_end_of(text, "merry") and "calm line" not in text


def test_a_stop_from_within_a_worker_says_what_it_said_without_a_traceback(policy: FragileGroup) -> None:
    with pytest.raises(RunStopped) as caught:
        policy.wait([policy.call("stop_run", 0)], verb="update")
    [note] = caught.value.__notes__
    assert str(caught.value) == "nothing to learn from"
    assert note.startswith("raised by policy 0 while it was to update") and quotes_the_end_of(note, "calm")
    assert "in stop_run" not in note


def test_a_death_names_the_dead_and_quotes_its_log_alone(policy: FragileGroup) -> None:
    with pytest.raises(WorkerDied) as caught:
        policy.wait([policy.call("work", 0, 1), policy.call("die", 2)], verb="update")
    text = str(caught.value)
    assert text.startswith("policy 2 died while it was to update: ")
    assert quotes_the_end_of(text, "old") and "calm line" not in text


def test_a_death_that_another_worker_waits_for_is_told_of_the_dead(policy: FragileGroup, reward: FragileGroup) -> None:
    with pytest.raises(WorkerDied) as caught:
        reward.wait([reward.call("work", 0, policy.call("die", 1))], verb="score a group")
    text = str(caught.value)
    assert text.startswith("policy 1 died while the run waited for the reward group to score a group: ")
    assert quotes_the_end_of(text, "merry") and "just line" not in text


def test_an_error_of_a_worker_that_missed_a_dead_trainer_is_told_as_that_death(hosting: Hosting) -> None:
    class FragileTrainers(TrainerGroup, FragileGroup):
        pass

    trainers = FragileTrainers(fragile(), hosting, role="critic", arguments=[("young",)])
    ray.wait([ref for _, ref in trainers.ready()], timeout=60)
    with pytest.raises(FileNotFoundError), trainers_death_first(trainers):
        raise FileNotFoundError("/proc/1/fd/60")
    trainers.call("die", 0)
    with pytest.raises(WorkerDied) as caught, trainers_death_first(trainers):
        raise FileNotFoundError("/proc/1/fd/60")
    assert str(caught.value).startswith("critic 0 died while it was to stand by: ")
    assert quotes_the_end_of(str(caught.value), "young")


def test_a_trainer_that_dies_while_nobody_waits_for_it_ends_the_wait_for_another(
    hosting: Hosting, reward: FragileGroup
) -> None:
    idle = started(hosting, "critic", "idle")
    resting, dying = reward.call("rest", 0), idle.call("die", 0)
    with pytest.raises(WorkerDied) as caught:
        reward.wait([resting], verb="score a group")
    assert str(caught.value).startswith("critic 0 died while the run waited for the reward group to score a group: ")
    assert quotes_the_end_of(str(caught.value), "idle")
    # Told once: whoever cleans up after it may wait.
    reward.wait([resting], verb="score a group")
    with pytest.raises(WorkerDied):
        idle.wait([dying], verb="update")


def test_a_death_that_a_wait_beside_the_run_was_told_of_is_still_told_to_the_run(
    hosting: Hosting, reward: FragileGroup
) -> None:
    writing = started(hosting, "critic", "writing")
    resting, written = reward.call("rest", 0), writing.waiter([writing.call("die", 0)], verb="save")
    with ThreadPoolExecutor() as beside, pytest.raises(WorkerDied, match=r"^critic 0 died while it was to save: "):
        beside.submit(written).result()
    with pytest.raises(
        WorkerDied, match=r"^critic 0 died while the run waited for the reward group to score a group: "
    ):
        reward.wait([resting], verb="score a group")


def test_who_does_not_answer_is_named(reward: FragileGroup) -> None:
    with pytest.raises(WorkerTimeout) as caught:
        reward.wait([reward.call("work", 0, 1), reward.call("hang", 0)], verb="score a group")
    text = str(caught.value)
    assert text.startswith("reward 0 did not answer within 3 s, while the reward group was to score a group")
    assert quotes_the_end_of(text, "just")
    lines = [line.strip() for line in text.splitlines()]
    where = lines[lines.index("--- reward 0 is in:") + 1]
    assert where.startswith("File ") and where.endswith(" in hang")


def test_what_the_run_waits_for_and_where_everybody_is_can_be_asked_meanwhile(
    hosting: Hosting, policy: FragileGroup, reward: FragileGroup
) -> None:
    hanging = policy.call("hang", 0)
    waiting = threading.Thread(target=policy_waits, args=(policy, hanging), daemon=True)
    waiting.start()
    time.sleep(0.5)
    first, *lines = hosting.roster.report()
    waiting.join()
    assert re.fullmatch(r"the run waits for policy 0, since [0-9.]+ s: the policy group is to update", first)
    told = "\n".join(lines)
    assert "--- policy 0 is in:" in told and "--- reward 0 is in:" in told
    assert " in hang" in lines[lines.index("--- policy 0 is in:") + 1]
    stacks = (hosting.roster.log_path("policy 0").parent / "stacks.txt").read_text()
    assert "=== policy 0, " in stacks and "in hang" in stacks
    assert hosting.roster.report()[0] == "the run waits for no worker"


def policy_waits(policy: FragileGroup, ref: ObjectRef) -> None:
    with pytest.raises(WorkerTimeout):
        policy.wait([ref], verb="update")


def test_a_signal_has_the_run_tell(hosting: Hosting, reward: FragileGroup) -> None:
    said: list[str] = []
    with telling_on_signal(hosting.roster, said.extend):
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 20
        while not said and time.monotonic() < deadline:
            time.sleep(0.05)
    assert said[0] == "the run waits for no worker" and "--- reward 0 is in:" in said


def test_what_a_worker_does_beside_its_main_thread_is_told(hosting: Hosting) -> None:
    """A rollout engine decodes in a thread of its own."""
    rollout = started(hosting, "rollout", "quiet")

    def where() -> str:
        lines = hosting.roster.report()
        return lines[lines.index("--- rollout 0 is in:") + 1].strip()

    assert where() == "(nothing of the run's own)"
    rollout.wait([rollout.call("leave_a_thread", 0)], verb="sample")
    assert where().endswith(" in decode")


def test_a_worker_that_ray_replaces_while_it_is_idle_is_told_of_once(hosting: Hosting) -> None:
    group = FragileGroup(fragile(), hosting, role="reference", arguments=[("new",)], restarts=1)
    announced: list[str] = []
    roll_call = RollCall(announced.append, hosting.roster.log_path)

    def answer() -> Metrics:
        deadline = time.monotonic() + 60
        while "memory/reference/resident_gib" not in (metrics := roll_call.metrics(group.vitals())):
            assert time.monotonic() < deadline
        return metrics

    assert answer()["replaced_workers"] == 0.0
    os.kill(ray.get(group.call("pid", 0)), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while answer()["replaced_workers"] == 0.0:  # Ray hears of it in a moment
        assert not announced and time.monotonic() < deadline
    assert answer()["replaced_workers"] == 0.0
    log = hosting.roster.log_path("reference 0")
    assert announced == [f"reference 0 died and was replaced; what it said is in {log}"]
