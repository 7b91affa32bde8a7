"""Steps of a run done again from the rollouts that it kept: trainers and a reference, no engine and no judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.carried import taken_group
from engine.config import Config
from engine.learning import ask_models, credit, deal_out, publish, update
from engine.replay_plan import Plan, Standing
from engine.resume import begin_to_save
from engine.rollout_files import read_rollouts
from workers.frozen_worker import REFERENCE_FILE
from workers.records import AlgorithmState, Metrics
from workers.team import Workers, start_workers

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redone:
    """What came out of a step."""

    metrics: Metrics
    algorithm: AlgorithmState
    """After it."""
    weights_checksum: str
    """Of the policy after it."""


def redo(plan: Plan, say: Say) -> Redone:
    """The step that is asked for. Raises RunStopped, or NotGroups for rollouts of an earlier step."""
    own_folder, here = plan.run_folder / "replay", plan.start
    own_folder.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=own_folder) as saved:
        if plan.changes and plan.step - here.step > 1:
            # A trainer's settings are its own from its start: what comes before the step needs another one.
            with _trainers(plan.config, say) as workers:
                before = _steps(here, plan.step - 1, plan.config, workers, say)
                finish = begin_to_save(Path(saved), plan.config, workers)
                finish()
            here = Standing(step=plan.step - 1, folder=Path(saved), algorithm=before.algorithm)
        if plan.asked.algo.initial_state() != plan.config.algo.initial_state():
            here = replace(here, algorithm=plan.asked.algo.initial_state())
        with _trainers(plan.asked, say) as workers:
            return _steps(here, plan.step, plan.asked, workers, say)


@contextmanager
def _trainers(config: Config, say: Say) -> Iterator[Workers]:
    """Everybody who learns or is asked meanwhile."""
    team = replace(config.team(), rollout_workers=False, log_folder=str(config.run_folder / "replay" / "logs"))
    with start_workers(
        team, (), (), announce=say, started=lambda took_s: None, tell=lambda lines: say("\n".join(lines))
    ) as workers:
        yield workers


def _steps(here: Standing, last: int, config: Config, workers: Workers, say: Say) -> Redone:
    """The steps after `here` to number `last` (from 1)."""
    if here.folder is not None:
        _load(here.folder, workers)
    workers.publish_weights(version=here.step)
    redone = Redone(metrics={}, algorithm=here.algorithm, weights_checksum="")
    for step in range(here.step, last):
        say(f"step {step + 1} again")
        redone = _step(step, redone.algorithm, config, workers)
    return redone


def _step(step: int, state: AlgorithmState, config: Config, workers: Workers) -> Redone:
    """One of them (from 0), as `engine/loop.py` does it once it has its groups."""
    judged = read_rollouts(config.run_folder, step + 1)
    batch = deal_out([taken_group(own) for own in judged if own.dropped is None], config)
    said = ask_models(batch, config, workers)
    credited = credit(batch, said, config, state, workers)
    metrics = credited.metrics | update(batch, credited.rows, config, state, workers, step=step)
    published = publish(config, workers, step=step)
    return Redone(
        metrics=metrics,
        algorithm=config.algo.next_state(state, metrics),
        weights_checksum=published.manifest.checksum,
    )


def _load(folder: Path, workers: Workers) -> None:
    """A model that nobody saved, for the run had none, is as one that begins."""
    workers.policy.load(folder)
    if (folder / workers.critic.role).is_dir():
        workers.critic.load(folder)
    if (folder / REFERENCE_FILE).exists():
        workers.reference.load(folder)
