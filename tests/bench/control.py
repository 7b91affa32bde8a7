"""What one driver does for each rollout, with up to 64 engines, and how fast rollouts reach a trainer.

    python -m tests.bench.control                          # tables, about 5 minutes on two cores
    python -m tests.bench.control --json control.json      # the same as JSON; --json alone prints it
    python -m tests.bench.control --part data_plane

`driver`: real steps of the real loop over engines and a trainer that do next to nothing (`tests/bench/_stub_team.py`),
groups of 8, judged by real reward workers. CPU time of the driver's process with all of its threads, Ray's among them;
bytes are of what it pickles and unpickles: requests, summaries, rows. `data_plane`: a batch of 64 groups, from the
rollout actor that has it to a trainer that holds its arrays, beside copying as many bytes.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from engine.config import Config, load_config
from engine.dealing import WorkModel
from engine.experience import assign
from engine.origin import git_version
from engine.rollout_stream import TakenGroup
from engine.tasks import OnlineTask, prepare_online
from rewards.score import Score
from tests.bench._made_up import group_of
from tests.bench._output import tell
from tests.bench._stub_models import Plan
from tests.bench._stub_team import quiet_settings, run_loop, stub_team
from workers.config import ClusterConfig
from workers.placement import Place, connected
from workers.process_settings import KEEP_FREED_MEMORY
from workers.records import Group, GroupRequest, Prompt, Sampling
from workers.team import Workers

ENGINES = (1, 16, 64)
PROMPTS, SIBLINGS, PROMPT_TOKENS, STEPS, WARM_UP_STEPS = 64, 8, 200, 8, 3
DATA_BYTES, DATA_GROUPS = 256 << 20, 64
SUMMARY_BYTES = 800
BYTES_A_TOKEN = 8
"""int32 and float32: its number and its log-prob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """One number of engines."""

    engines: int
    rollouts: int
    """Of a step."""
    cpu_us: float
    """A rollout, of the driver's process; as the following ones."""
    loop_us: float
    """Of it, the thread of the loop: the rest are Ray's threads."""
    ray_us: float
    """Of another program that makes as many calls of Ray with the same arguments, and does nothing else."""
    request_bytes: float
    summary_bytes: float
    rows_bytes: float
    driver_bytes: float
    """All three."""
    group_bytes: float
    """Tokens and texts, which pass the driver by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlane:
    """From a rollout actor to a trainer."""

    megabytes: float
    seconds: float
    copy_s: float
    gb_per_s: float
    speed_of_copying: float
    """Copying's time over it."""


class _Echo:
    """Answers each group's two calls with what a summary weighs."""

    async def generate(self, request: GroupRequest) -> bytes:
        return b"group"

    async def score(self, group: bytes) -> bytes:
        return bytes(SUMMARY_BYTES)


def ray_alone_us(prompts: Sequence[Prompt]) -> float:
    """CPU time of this process for two calls and one answer a group, a rollout."""
    sampling = Sampling(temperature=1.0, max_tokens=8)
    engine, judge = (ray.remote(_Echo).options(max_concurrency=1000).remote() for _ in range(2))
    took_s = []
    for _ in range(STEPS):
        began = time.process_time()
        scores = []
        for draw, prompt in enumerate(prompts[:PROMPTS]):
            request = GroupRequest(
                prompt=prompt, draw=draw, num_samples=SIBLINGS, seed=0, sampling=sampling, with_greedy=False
            )
            scores.append(judge.score.remote(engine.generate.remote(request)))
        for score in scores:
            ray.get(score)
        took_s.append(time.process_time() - began)
    for actor in (engine, judge):
        ray.kill(actor)
    return 1e6 * statistics.median(took_s[WARM_UP_STEPS:]) / (PROMPTS * SIBLINGS)


def driver(engines: int) -> Driver:
    with tempfile.TemporaryDirectory() as folder:
        quiet = quiet_settings(prompts=PROMPTS, responses=SIBLINGS)
        own = f"run.folder={folder}", f"run.steps={STEPS}", "rollout.max_staleness=1", f"rollout.engines={engines}"
        config = load_config([*quiet, *own])
        task = _long_prompts(prepare_online(config))
        plan = Plan(decode_step_s=0.001, update_s=0.0, swap_s=0.0, lengths=((4,) * SIBLINGS,))
        marks: list[tuple[float, float]] = []
        with stub_team(config, Path(folder) / "logs") as workers:
            _mark_steps(workers, marks)
            run_loop(config, task, workers, plan)
    ray_us = ray_alone_us(task.prompts)
    (all_s, loop_s), rollouts = _spent(marks), PROMPTS * SIBLINGS
    sizes = _bytes(config, task)
    return Driver(
        engines=engines,
        rollouts=rollouts,
        cpu_us=1e6 * all_s / rollouts,
        loop_us=1e6 * loop_s / rollouts,
        ray_us=ray_us,
        **sizes,
    )


def _long_prompts(task: OnlineTask) -> OnlineTask:
    """As long as people's are: the requests must carry them."""
    prompts = task.prompts[: PROMPTS * STEPS]
    return replace(task, prompts=tuple(replace(own, token_ids=(5,) * PROMPT_TOKENS) for own in prompts))


def _mark_steps(workers: Workers, marks: list[tuple[float, float]]) -> None:
    """CPU time of the process, and of this thread, whenever weights are published: once a step."""
    publish = workers.policy.publish

    def publish_and_mark(version: int) -> Any:
        marks.append((time.process_time(), time.thread_time()))
        return publish(version)

    workers.policy.publish = publish_and_mark


def _spent(marks: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A step's, the median of those that count."""
    steps = [(end[0] - start[0], end[1] - start[1]) for start, end in itertools.pairwise(marks[WARM_UP_STEPS:])]
    return statistics.median(own[0] for own in steps), statistics.median(own[1] for own in steps)


def _bytes(config: Config, task: OnlineTask) -> dict[str, float]:
    """What the records of a step take as pickled, a rollout."""
    random, rollouts = np.random.default_rng(0), PROMPTS * SIBLINGS
    sampling = Sampling(temperature=1.0, max_tokens=config.rollout.max_response_tokens)
    requests = [
        GroupRequest(prompt=prompt, draw=draw, num_samples=SIBLINGS, seed=0, sampling=sampling, with_greedy=False)
        for draw, prompt in enumerate(task.prompts[:PROMPTS])
    ]
    groups = [
        group_of(
            (5,) * PROMPT_TOKENS, [random.integers(0, 50_000, 400) for _ in range(SIBLINGS)], draw=draw, logprob=-1.0
        )
        for draw in range(PROMPTS)
    ]
    summaries = [
        group.summary([Score(total=float(random.integers(2)), parts={}) for _ in group.rollouts], judging_s=0.0)
        for group in groups
    ]
    batch = assign(
        [TakenGroup(summary=summary, group=None) for summary in summaries],
        config.algo,
        ranks=2,
        updates_per_step=1,
        horizon=400,
        work=WorkModel.of(config.sizes, shares_prompts=True),
    )

    def each(records: Sequence[object]) -> float:
        return sum(len(pickle.dumps(one, protocol=5)) for one in records) / rollouts

    own = {
        "request_bytes": each(requests), "summary_bytes": each(summaries), "rows_bytes": each(batch.shares),
    }  # fmt: skip
    return {**own, "driver_bytes": sum(own.values()), "group_bytes": each(groups)}


class _Sampler:
    """Has a batch of long groups, as a rollout actor that has just finished them."""

    def __init__(self) -> None:
        tokens = np.arange(DATA_BYTES // DATA_GROUPS // SIBLINGS // BYTES_A_TOKEN, dtype=np.int32)
        self._groups = [group_of((5,), [tokens] * SIBLINGS, draw=draw, logprob=-1.0) for draw in range(DATA_GROUPS)]

    def generate(self, draw: int) -> Group:
        return self._groups[draw]


class _Trainer:
    def hold(self, *groups: Group) -> int:
        """The bytes of the arrays that it now reads from."""
        rollouts = [own for group in groups for own in group.rollouts]
        return sum(own.token_ids.nbytes + own.logprobs.nbytes for own in rollouts)


def data_plane(repeats: int = 9) -> DataPlane:
    # As rollout actors are made.
    kept = {"env_vars": KEEP_FREED_MEMORY}
    sampler, trainer = (ray.remote(own).options(runtime_env=kept).remote() for own in (_Sampler, _Trainer))
    source, target = np.ones(DATA_BYTES, dtype=np.uint8), np.empty(DATA_BYTES, dtype=np.uint8)
    took_s, copied_s = [], []
    for _ in range(repeats):
        took_s.append(_timed(lambda: _crossed(sampler, trainer)))
        copied_s.append(_timed(lambda: np.copyto(target, source)))
    for actor in (sampler, trainer):
        ray.kill(actor)
    # The first turns touch the store's memory for the first time.
    seconds, copy_s = statistics.median(took_s[3:]), statistics.median(copied_s[3:])
    return DataPlane(
        megabytes=DATA_BYTES / 1e6,
        seconds=seconds,
        copy_s=copy_s,
        gb_per_s=DATA_BYTES / seconds / 1e9,
        speed_of_copying=copy_s / seconds,
    )


def _crossed(sampler: Any, trainer: Any) -> None:
    groups = [sampler.generate.remote(draw) for draw in range(DATA_GROUPS)]
    assert ray.get(trainer.hold.remote(*groups)) == DATA_BYTES


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def show(drivers: Sequence[Driver], planes: Sequence[DataPlane]) -> None:
    for title, rows in (("driver, a rollout", drivers), ("data plane", planes)):
        if rows:
            table = Table(title=title, title_justify="left")
            for name in asdict(rows[0]):
                table.add_column(name.replace("_", " "), justify="right")
            for row in rows:
                table.add_row(*(f"{value:,.3g}" if value < 1 else f"{value:,.0f}" for value in asdict(row).values()))
            Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--part", choices=("driver", "data_plane"), help="one of them (default: both)")
    parser.add_argument("--engines", type=int, nargs="+", default=list(ENGINES))
    asked = parser.parse_args()
    with connected(ClusterConfig(), [Place(role="everybody", index=0, cpus=8.0, gpus=0.0)]):
        planes = [data_plane()] if asked.part != "driver" else []
        drivers = [driver(engines) for engines in asked.engines] if asked.part != "data_plane" else []
    told = {
        "git": git_version(),
        "command": f"python -m tests.bench.control {' '.join(sys.argv[1:])}".strip(),
        "driver": [asdict(own) for own in drivers],
        "data_plane": [asdict(own) for own in planes],
    }
    tell(told, asked.json, lambda: show(drivers, planes))


if __name__ == "__main__":
    main()
