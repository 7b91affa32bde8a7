"""Where a run stands, saved and found again: what the driver knows, beside what the trainers write."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint import Checkpoints, CheckpointState
from engine.config import Config, Resume
from engine.fingerprint import flattened
from engine.tasks import OfflineTask, OnlineTask
from engine.tracking import Tracker
from workers.config import Schedule
from workers.records import AlgorithmState

if TYPE_CHECKING:
    from workers.team import Workers

MAY_CHANGE = ("run.", "cluster.", "evaluation.", "checks.", "reward.workers", "reward.timeout_s", "rollout.max_running")
MAY_CHANGE += ("reward.judge.max_running", "reward.judge.gpus")
"""Settings that do not decide what is learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    step: int
    next_draw: int
    algorithm: AlgorithmState
    folder: Path | None
    """The checkpoint that holds it; None where none does."""


def open_checkpoints(config: Config) -> Checkpoints:
    """The run's checkpoints. With `run.resume=never` an earlier run of the same name is moved aside, never deleted."""
    folder = config.run_folder
    if config.run.resume is Resume.NEVER and folder.exists():
        number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.{n}").exists())
        folder.rename(folder.with_name(f"{folder.name}.{number}"))
    return Checkpoints(folder=folder / "checkpoints", keep=config.run.keep_checkpoints)


def find_progress(config: Config, data_fingerprint: str, checkpoints: Checkpoints, tracker: Tracker) -> Progress:
    """Where the run stands: at its newest valid checkpoint, or at its beginning.

    Raises CheckpointError when there are checkpoints but none is valid, or when they belong to another run.
    """
    saved = checkpoints.newest_valid()
    if saved is None:
        tracker.begin(config, position=0)
        return Progress(step=0, next_draw=0, algorithm=config.algo.initial_state(), folder=None)
    for skipped in saved.skipped:
        tracker.say(f"passed over the damaged checkpoint {skipped.path}: {skipped.reason}")
    saved.state.refuse_other_run(config=deciding_settings(config), data_fingerprint=data_fingerprint)
    tracker.begin(config, position=saved.state.metrics_bytes)
    tracker.say(f"going on after step {saved.step}, from {saved.path}")
    return Progress(
        step=saved.step, next_draw=saved.state.next_draw, algorithm=saved.state.algorithm, folder=saved.path
    )


def save_progress(
    here: Progress,
    config: Config,
    task: OnlineTask | OfflineTask,
    workers: Workers,
    tracker: Tracker,
    checkpoints: Checkpoints,
) -> None:
    """A checkpoint of everything that decides the run's future: the trainers' part, and what the driver knows."""
    state = CheckpointState(
        step=here.step,
        next_draw=here.next_draw,
        algorithm=here.algorithm,
        metrics_bytes=tracker.position(),
        weights_version=here.step,
        seed=config.run.seed,
        config=deciding_settings(config),
        data_fingerprint=task.fingerprint,
    )

    def write(folder: Path) -> None:
        workers.policy.save(folder)
        workers.critic.save(folder)
        if config.algo.online and config.algo.reference_refresh.every_steps:
            workers.reference.save(folder)

    with tracker.phase("save"):
        tracker.say(f"saved {checkpoints.save(here.step, write, state)}")


def deciding_settings(config: Config) -> Mapping[str, str]:
    """The settings that a resumed run must share with the one that it goes on from."""
    settings = flattened(config)
    deciding = {key: value for key, value in settings.items() if not key.startswith(MAY_CHANGE)}
    if config.train.schedule is not Schedule.CONSTANT:
        deciding["run.steps"] = settings["run.steps"]
    return deciding | {"run.seed": settings["run.seed"]}
