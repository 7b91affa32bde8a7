"""A team whose models sleep: the real loop, stream, ledger, rollout workers, reward workers, groups and Ray around
engines and trainers that take the time which a plan gives them. They calculate nothing, so on two cores they show what
the order of the work costs, and not what the machine does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from engine.checkpoint import Checkpoints
from engine.config import Config
from engine.judging import reward_specs
from engine.loop import train_online
from engine.resume import SavePoints, find_start
from engine.stopping import StopSignals
from engine.tasks import OnlineTask
from engine.tracking import Tracker
from tests.bench._stub_models import Plan, StubPolicy, StubRolloutActor
from workers.failures import Roster
from workers.frozen_worker import FrozenWorker
from workers.group import CriticGroup, Hosting, PolicyGroup, ReferenceGroup, RewardGroup, RolloutGroup
from workers.judge_group import JudgeServerGroup
from workers.judge_server import JudgeServer
from workers.placement import Place, reserved
from workers.reward_worker import RewardWorker
from workers.team import Workers
from workers.vitals import RollCall


@contextmanager
def stub_team(config: Config, logs: Path) -> Iterator[Workers]:
    """For any number of runs, one after the other, in the cluster that this process is connected to. The rewards are
    real, and no reference and no critic is."""
    engines = config.rollout.engines
    places = (
        Place(role="policy", index=0, cpus=0.01, gpus=0.0),
        *(Place(role="rollout", index=index, cpus=0.01, gpus=0.0) for index in range(engines)),
        Place(role="reward", index=0, cpus=0.01, gpus=0.0),
    )
    with reserved(places, timeout_s=60.0) as placement:
        hosting = Hosting(
            placement=placement, places=places, environment={}, roster=Roster(logs.absolute()), call_timeout_s=1800.0
        )
        yield Workers(
            policy=PolicyGroup(StubPolicy, hosting, role="policy", arguments=[("trainer",)]),
            critic=CriticGroup(StubPolicy, hosting, role="critic", arguments=[]),
            reference=ReferenceGroup(FrozenWorker, hosting, role="reference", arguments=[]),
            rollout=RolloutGroup(
                StubRolloutActor,
                hosting,
                arguments=[(f"engine {index}", config.rollout.max_running) for index in range(engines)],
            ),
            reward=RewardGroup(
                RewardWorker,
                hosting,
                role="reward",
                arguments=[(reward_specs(config.reward), (), config.reward)],
                concurrency=config.reward.processes + 1,
            ),
            judge=JudgeServerGroup(JudgeServer, hosting, role="judge", arguments=[]),
            roll_call=RollCall(partial(print, file=sys.stderr), hosting.roster.log_path),
            shares_devices=False,
        )


def quiet_settings(*, prompts: int, responses: int) -> tuple[str, ...]:
    """Of a run that nothing is kept, shown or measured of."""
    return (
        "run.name=stub", "run.save_every_steps=0", "run.keep_rollouts_every_steps=0",
        "run.show_responses_every_steps=0", "run.tensorboard=false", "checks.alarms=off", "evaluation.prompts=0",
        "algo.kl_coef=0", f"rollout.prompts_per_step={prompts}", f"rollout.responses_per_prompt={responses}",
    )  # fmt: skip


def run_loop(config: Config, task: OnlineTask, workers: Workers, plan: Plan) -> list[dict[str, float]]:
    """The real loop, from its first step to its last. Returns the rows of its metrics."""
    for group in (workers.rollout, workers.policy):
        group.wait([actor.begin.remote(plan) for actor in group._actors], verb="begin")
    checkpoints = Checkpoints(folder=config.run_folder / "kept", keep=1)
    with closing(Tracker(config)) as tracker:
        start = find_start(config, task.fingerprint, checkpoints, tracker)
        saves = SavePoints(
            config, task, workers, tracker, checkpoints, start, stop=StopSignals(), committed=lambda: None
        )
        train_online(config, task, start, workers, tracker, saves)
    return [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]


def told(group: RolloutGroup | PolicyGroup) -> list[Any]:
    return group.wait([actor.told.remote() for actor in group._actors], verb="tell")
