"""How many responses a second are judged, how long one waits, and what each layer of the path costs.

    python -m tests.bench.rewards                       # a table
    python -m tests.bench.rewards --json rewards.json   # the same as JSON; --json alone prints it
    python -m tests.bench.rewards --seconds 10          # of each measurement

`pool` hands items to the processes; `worker` makes items of rollouts and a scored group of judgements; `ray` has the
worker in an actor, with groups in the object store. Under load, groups arrive when they arrive (open loop): a latency
is counted from when a group was due, so that a queue which holds back its producer hides nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from rich.console import Console
from rich.table import Table

from engine.judging import reward_specs
from engine.origin import git_version
from rewards.score import Failure, FailureKind, Judgement
from tests.bench._output import tell
from workers.config import ClusterConfig, RewardConfig
from workers.failures import Roster
from workers.group import Hosting, RewardGroup
from workers.placement import connected, reserved
from workers.places import Place
from workers.records import Group, Message, Prompt, Rollout, Span, Stop
from workers.reward_pool import RewardPool
from workers.reward_worker import RewardWorker, items_of, limits_of

SIBLINGS, TOKENS, PROCESSES, TIMEOUT_S = 8, 200, 2, 1.0
IN_FLIGHT = 32
"""Groups."""
HUNG_EVERY = 50
LOADS = (0.5, 0.8, 0.95, 2.0)
OWN = """
import time

def isolated(response, answer):
    return float(answer in response)

def sleeper(response, answer):
    time.sleep(0.05)
    return float(answer in response)

def hung(response, answer):
    while response.startswith("hang"):
        pass
    return float(answer in response)
"""
MIXES = {"rule": "rewards.number:exact", "isolated": "isolated", "50 ms": "sleeper", "2% hung": "hung"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """As fast as one path goes."""

    mix: str
    path: str
    responses_per_s: float
    us_per_response: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The pool, when groups arrive at a share of its capacity."""

    mix: str
    offered: float
    """In times of the capacity."""
    responses: int
    false_timeouts: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """Groups of a megabyte, offered at ten times the capacity."""

    offered: int
    accepted: int
    growth_mib: float


def group(draw: int, *, hang: bool = False, text: str = "Three and four are seven. " * 30) -> Group:
    """Siblings as an engine hands them over; of every fifty responses one hangs, where they may."""
    messages = (Message(role="user", content="What is 12 + 34? Think before you answer. " * 4),)
    prompt = Prompt(
        id=f"p{draw}", messages=messages, token_ids=tuple(range(60)), answer="46", row={"level": 3}, from_text=True
    )
    return Group(
        rollouts=tuple(
            Rollout(
                prompt=prompt,
                draw=draw,
                sample=sample,
                text=f"hang {text}" if hang and (draw * SIBLINGS + sample) % HUNG_EVERY == 0 else f"{text} 46",
                token_ids=np.arange(TOKENS, dtype=np.int32),
                logprobs=np.zeros(TOKENS, dtype=np.float32),
                spans=(Span(start=0, end=TOKENS, sampled=True, version=0),),
                stop=Stop.END,
            )
            for sample in range(SIBLINGS)
        ),
        greedy=None,
        prompt_text=messages[0].content,
    )


def config_of(mix: str, folder: Path) -> RewardConfig:
    (folder / "own.py").write_text(OWN)
    function = MIXES[mix] if ":" in MIXES[mix] else f"{folder / 'own.py'}:{MIXES[mix]}"
    return RewardConfig(function=function, processes=PROCESSES, timeout_s=TIMEOUT_S)


def rate(begin: Callable[[int], Any], end: Callable[[Any], object], seconds: float) -> float:
    """Responses a second with so many groups in flight, the oldest waited for: as a run's stream of groups does it."""
    for number in range(1, 4):
        end(begin(number))
    asked: deque[Any] = deque()
    number, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        asked.append(begin(number))
        number += 1
        if len(asked) == IN_FLIGHT:
            end(asked.popleft())
    for one in asked:
        end(one)
    return number * SIBLINGS / (time.perf_counter() - started)


class Idle(RewardWorker):
    """Is handed groups, and says nothing of them: what is left is Ray's own time."""

    def score(self, group: Group) -> None:
        return None


@contextmanager
def over_ray(reward: RewardConfig, folder: Path, worker: type[RewardWorker] = RewardWorker) -> Iterator[RewardGroup]:
    places = (Place(role="reward", index=0, cpus=1.0, gpus=0.0),)
    with connected(ClusterConfig(), places), reserved(places, timeout_s=60.0) as placement:
        hosting = Hosting(
            placement=placement, places=places, environment={}, roster=Roster(folder), call_timeout_s=600.0
        )
        arguments = [(reward_specs(reward), (), reward)]
        workers = RewardGroup(worker, hosting, role="reward", arguments=arguments, concurrency=reward.processes + 1)
        ray.get([ref for _, ref in workers.ready()])
        yield workers


def capacities(mix: str, seconds: float, folder: Path) -> list[Capacity]:
    reward, hang = config_of(mix, folder), "hung" in mix
    groups = [group(draw, hang=hang) for draw in range(100)]
    rates: dict[str, float] = {}
    with closing(RewardPool(reward_specs(reward), limits_of(reward), processes=PROCESSES)) as pool:
        items = [items_of(one) for one in groups]
        rates["pool"] = rate(lambda n: pool.judge(0, items[n % 100]), Future.result, seconds)
    with (
        closing(RewardWorker(reward_specs(reward), (), reward)) as worker,
        ThreadPoolExecutor(PROCESSES + 1) as threads,
    ):
        rates["worker"] = rate(lambda n: threads.submit(worker.score, groups[n % 100]), Future.result, seconds)
    rates["ray"] = rate_over_ray(groups, reward, seconds, folder)
    return [Capacity(mix=mix, path=path, responses_per_s=own, us_per_response=1e6 / own) for path, own in rates.items()]


def rate_over_ray(
    groups: list[Group], reward: RewardConfig, seconds: float, folder: Path, worker: type[RewardWorker] = RewardWorker
) -> float:
    with over_ray(reward, folder, worker) as workers:
        refs = [ray.put(one) for one in groups]
        return rate(
            lambda n: workers.score(refs[n % 100], draw=n),
            lambda summary: workers.wait([summary], verb="score a group"),
            seconds,
        )


def loads(mix: str, capacity: float, seconds: float, folder: Path) -> list[Load]:
    reward, hang = config_of(mix, folder), "hung" in mix
    items = [items_of(group(draw, hang=hang)) for draw in range(100)]
    with closing(RewardPool(reward_specs(reward), limits_of(reward), processes=PROCESSES)) as pool:
        pool.judge(0, items[1]).result()
        gc.collect()
        gc.freeze()  # as a worker does: what Ray and torch hold here is not the pool's to wait for
        measured = []
        for offered in LOADS:
            waited, said = arrivals(pool, items, offered * capacity / SIBLINGS, seconds)
            p50, p95, p99 = (statistics.quantiles(waited, n=100)[at - 1] for at in (50, 95, 99))
            late = sum(isinstance(one, Failure) and one.kind is FailureKind.TIMEOUT for one in said)
            hangs = sum(item.response.startswith("hang") for n in range(len(waited)) for item in items[n % 100])
            measured.append(
                Load(
                    mix=mix, offered=offered, responses=len(said), false_timeouts=late - hangs, p50_ms=1e3 * p50,
                    p95_ms=1e3 * p95, p99_ms=1e3 * p99,
                )
            )  # fmt: skip
        return measured


def arrivals(pool: RewardPool, items: list, groups_per_s: float, seconds: float) -> tuple[list[float], list[Judgement]]:
    """How long after it was due each group was judged, in seconds, and all judgements."""
    waited, futures = [], []
    started = time.perf_counter()
    for number in range(max(2, int(groups_per_s * seconds))):
        due = started + number / groups_per_s
        time.sleep(max(0.0, due - time.perf_counter()))
        future = pool.judge(0, items[number % 100])
        future.add_done_callback(lambda _, due=due: waited.append(time.perf_counter() - due))
        futures.append(future)
    said = [judgement for future in futures for judgement in future.result()]
    return waited, said


def pressure(capacity: float, seconds: float, folder: Path) -> Pressure:
    """What a producer that is ten times too fast makes this process hold."""
    reward = config_of("isolated", folder)
    with closing(RewardPool(reward_specs(reward), limits_of(reward), processes=PROCESSES)) as pool:
        pool.judge(0, items_of(group(0))).result()
        own = psutil.Process()
        before = most = own.memory_info().rss
        due, started, accepted = int(10 * capacity / SIBLINGS * seconds), time.perf_counter(), 0
        while time.perf_counter() - started < seconds and accepted < due:
            made = items_of(group(accepted, text=chr(97 + accepted % 26) * (1 << 17)))
            pool.judge(0, made)
            accepted += 1
            most = max(most, own.memory_info().rss)
    return Pressure(offered=due, accepted=accepted, growth_mib=(most - before) / 2**20)


def show(found: list[Capacity], idle: float, under: list[Load], held: Pressure) -> None:
    table = Table(title=f"responses a second, groups of {SIBLINGS}, {PROCESSES} processes", title_justify="left")
    for heading in ("", "pool", "worker", "ray", "us: pool", "worker", "ray"):
        table.add_column(heading, justify="right" if heading else "left")
    for mix in dict.fromkeys(one.mix for one in found):
        own = [one for one in found if one.mix == mix]
        rates, costs = ([f"{value:,.0f}" for value in column] for column in zip(*map(figures, own), strict=True))
        table.add_row(mix, *rates, *costs)
    waits = Table(title="waiting for a group's judgements, ms, and false time-outs", title_justify="left")
    for heading in ("", "load", "p50", "p95", "p99", "responses", "false time-outs"):
        waits.add_column(heading, justify="right" if heading else "left")
    for one in under:
        numbers = [f"{value:,.1f}" for value in (one.p50_ms, one.p95_ms, one.p99_ms)]
        waits.add_row(one.mix, f"{one.offered:.0%}", *numbers, f"{one.responses:,}", str(one.false_timeouts))
    console = Console(width=120)
    console.print(table)
    console.print(
        f"an actor that says nothing of the groups: {idle:,.0f} responses a second, {1e6 / idle:,.0f} us each"
    )
    console.print(waits)
    console.print(
        f"a producer ten times too fast: of {held.offered:,} groups of 1 MiB {held.accepted:,} were taken, "
        f"memory grew by {held.growth_mib:.0f} MiB"
    )


def figures(one: Capacity) -> tuple[float, float]:
    return one.responses_per_s, one.us_per_response


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = [one for mix in MIXES for one in capacities(mix, asked.seconds, folder)]
        groups = [group(draw) for draw in range(100)]
        idle = rate_over_ray(groups, config_of("rule", folder), asked.seconds, folder, Idle)
        of_pool = {one.mix: one.responses_per_s for one in found if one.path == "pool"}
        under = [one for mix in MIXES for one in loads(mix, of_pool[mix], asked.seconds, folder)]
        held = pressure(of_pool["isolated"], asked.seconds, folder)
    origin = {"command": "python -m tests.bench.rewards", "git": git_version(), "processes": PROCESSES}
    measured = {
        "capacities": [asdict(one) for one in found],
        "idle_actor_responses_per_s": idle,
        "loads": [asdict(one) for one in under],
    }
    tell(origin | measured | {"pressure": asdict(held)}, asked.json, lambda: show(found, idle, under, held))


if __name__ == "__main__":
    main()
