"""Rewards over Ray: what a worker says in an actor is what it says here, and nothing of it outlives the actor."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from asked import generated
from hosted import hosting_for

from engine.judging import reward_specs
from rewards.score import Failure, FailureKind, Score
from rewards.spec import Isolation
from workers.config import FunctionConfig, RewardConfig
from workers.group import RewardGroup
from workers.places import Place
from workers.records import Group
from workers.reward_worker import RewardWorker

TEXT = """
import os, subprocess, time

def judge(response, answer, **row):
    if response == "hang":
        while True: pass
    if response == "start":
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        time.sleep(1000)
    if response == "exit":
        os._exit(3)
    if response == "raise":
        raise KeyError("the key")
    special = {"none": None, "nan": float("nan"), "text": "good", "parts": {"a": 0.1 + row["level"], "b": 0.5}}
    return special.get(response, float(response == answer))
"""
ODD = ("46", "exit", "hang", "45", "raise", "none", "nan", "text", "parts", "46")
PLACES = (Place(role="reward", index=0, cpus=1.0, gpus=0.0),)
PROCESSES = 2


def drawn(*texts: str, draw: int, greedy: str = "46", source: str = "") -> Group:
    return generated(*texts, greedy=greedy, draw=draw, row={"level": draw, "data_source": source})


def config_of(folder: Path, *, timeout_s: float) -> RewardConfig:
    file = folder / "mine.py"
    file.write_text(TEXT)
    return RewardConfig(function=f"{file}:judge", timeout_s=timeout_s, processes=PROCESSES)


@contextlib.contextmanager
def over_ray(address: str, config: RewardConfig, folder: Path) -> Iterator[RewardGroup]:
    """The judge of a run, as a run makes it."""
    with hosting_for(PLACES, folder, call_timeout_s=60.0, address=address) as hosting:
        arguments = [(reward_specs(config), (), config)]
        workers = RewardGroup(RewardWorker, hosting, role="reward", arguments=arguments, concurrency=PROCESSES + 1)
        workers.wait([ref for _, ref in workers.ready()], verb="start")
        yield workers


def pid_of(workers: RewardGroup) -> int:
    return ray.get(workers._actors[0].__ray_call__.remote(lambda _: os.getpid()))


def below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def judging(pid: int) -> list[psutil.Process]:
    """The living processes of the actor's pool, without what they forked."""
    return [one for one in psutil.Process(pid).children() if "workers.scoring_child" in " ".join(one.cmdline())]


def until(holds: Callable[[], bool], *, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def test_over_ray_the_judgements_are_those_of_the_worker_itself(cluster: str, tmp_path: Path) -> None:
    """Failures, parts and the greedy response included; many groups at once, each with its own; then all still live."""
    config = config_of(tmp_path, timeout_s=3.0)
    groups = [drawn(*ODD, draw=0, greedy="raise")]
    groups += [drawn(*["46" if (n >> bit) & 1 else "45" for bit in range(6)], draw=n) for n in range(1, 40)]
    with contextlib.closing(RewardWorker(reward_specs(config), (), config)) as worker:
        own = [worker.score(group) for group in groups]
    with over_ray(cluster, config, tmp_path) as workers:
        refs = [workers.score(ray.put(group), draw=draw) for draw, group in enumerate(groups)]
        theirs = workers.wait(refs, verb="score")
        pid = pid_of(workers)
        assert until(lambda: len(judging(pid)) == PROCESSES)
        assert ray.get(workers.score(ray.put(groups[1]), draw=1)).judgements == own[1].judgements
    for summary, own_summary in zip(theirs, own, strict=True):
        assert summary.judgements == own_summary.judgements
        assert repr(summary.greedy) == repr(own_summary.greedy)  # its score may be NaN
    kinds = [one.kind if isinstance(one, Failure) else one.total for one in theirs[0].judgements]
    assert kinds == [1.0, FailureKind.CRASH, FailureKind.TIMEOUT, 0.0, FailureKind.EXCEPTION, FailureKind.UNSCORABLE,
                     FailureKind.NOT_FINITE, FailureKind.MISSHAPED, 0.6, 1.0, FailureKind.EXCEPTION]  # fmt: skip
    assert theirs[1].judgements[-1] == Score(total=1.0, parts={"judge": 1.0})


def kill_the_process(workers: RewardGroup, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_the_actor(workers: RewardGroup, pid: int) -> None:
    ray.kill(workers._actors[0])


def leave(workers: RewardGroup, pid: int) -> None:
    """The driver ends."""


@pytest.mark.parametrize("end", [kill_the_process, kill_the_actor, leave], ids=lambda end: end.__name__)
def test_no_process_of_a_reward_outlives_its_actor(
    end: Callable[[RewardGroup, int], None], cluster: str, tmp_path: Path
) -> None:
    """Not even a program that a call started, in the middle of calls that hang on the threads of the pool."""
    config = config_of(tmp_path, timeout_s=1000.0)
    for kind in (Isolation.SAMPLE, Isolation.WORKER):
        own = FunctionConfig(function=config.function, isolation=kind, data_sources=[kind.value])
        config.functions[kind.value] = own
    config.function = ""
    with over_ray(cluster, config, tmp_path) as workers:
        pid = pid_of(workers)
        groups = [drawn("start", draw=0, source="sample"), drawn("hang", draw=1, source="worker")]
        asked = [workers.score(ray.put(group), draw=draw) for draw, group in enumerate(groups)]
        # Two of the pool, a copy of one for the call that starts a program, one more for calls that share a process.
        assert until(lambda: len(below(pid)) == PROCESSES + 2 + 1), below(pid)
        # A program has its starter's name until it has begun.
        assert until(lambda: "sleep" in {one.name() for one in below(pid)}), below(pid)
        left = below(pid)
        end(workers, pid)
        del asked
    assert until(lambda: not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]), left
