"""Where a run stands, saved and found again: what the driver knows, beside what the trainers write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.checkpoint import Checkpoints, CheckpointState
from engine.config import Config
from engine.fingerprint import flattened
from engine.tracking import Tracker
from workers.config import Schedule
from workers.records import AlgorithmState
from workers.team import Workers

MAY_CHANGE = ("run.", "cluster.", "evaluation.", "checks.", "reward.workers", "reward.timeout_s", "rollout.max_running")
"""Settings that do not decide what is learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    step: int
    next_draw: int
    algorithm: AlgorithmState


def restore(
    config: Config, start: Progress, fingerprint: str, workers: Workers, tracker: Tracker, checkpoints: Checkpoints
) -> Progress:
    """The newest valid checkpoint, loaded into the trainers; `start` when there is none.

    Raises CheckpointError when there are checkpoints but none is valid, or when they belong to another run.
    """
    saved = checkpoints.newest_valid()
    if saved is None:
        tracker.rewind(0)
        return start
    for skipped in saved.skipped:
        tracker.say(f"passed over the damaged checkpoint {skipped.path}: {skipped.reason}")
    saved.state.refuse_other_run(config=deciding_settings(config), data_fingerprint=fingerprint)
    workers.policy.load(saved.path)
    tracker.rewind(saved.state.metrics_bytes)
    tracker.say(f"going on after step {saved.step}, from {saved.path}")
    return Progress(step=saved.step, next_draw=saved.state.next_draw, algorithm=saved.state.algorithm)


def save(
    progress: Progress, config: Config, fingerprint: str, workers: Workers, tracker: Tracker, checkpoints: Checkpoints
) -> None:
    """Commit everything that decides the run's future."""
    state = CheckpointState(
        step=progress.step,
        next_draw=progress.next_draw,
        algorithm=progress.algorithm,
        metrics_bytes=tracker.position(),
        weights_version=progress.step,
        seed=config.run.seed,
        config=deciding_settings(config),
        data_fingerprint=fingerprint,
    )
    checkpoints.save(progress.step, workers.policy.save, state)


def deciding_settings(config: Config) -> Mapping[str, str]:
    """The settings that a resumed run must share with the one that it goes on from."""
    settings = flattened(config)
    deciding = {key: value for key, value in settings.items() if not key.startswith(MAY_CHANGE)}
    if config.train.schedule is not Schedule.CONSTANT:
        deciding["run.steps"] = settings["run.steps"]
    return deciding | {"run.seed": settings["run.seed"]}
