"""Online reinforcement learning, one step from top to bottom: generate, score, look, credit, update, publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from engine.checkpoint import Checkpoints
from engine.config import Config
from engine.evaluation import evaluate
from engine.experience import Assignment, advantages, assign
from engine.invariants import SkippedUpdates, check_agreement, check_tokens
from engine.metrics import of_rollouts, of_update
from engine.resume import Progress, save_progress
from engine.rollout_files import write_rollouts
from engine.rollout_stream import RolloutStream, Taken
from engine.tasks import OnlineTask
from engine.tracking import Tracker
from workers.records import AlgorithmState, Group, Metrics
from workers.team import Workers


def train_online(
    config: Config, task: OnlineTask, start: Progress, workers: Workers, tracker: Tracker, checkpoints: Checkpoints
) -> None:
    """Learn from what the policy samples. Weight version n is the policy after n steps."""
    algorithm, run, state = config.algo, config.run, start.algorithm
    if start.folder is not None:
        _load(start.folder, config, workers)
    stream = RolloutStream(
        task.prompts,
        workers,
        rollout=config.rollout,
        reward=config.reward,
        algorithm=algorithm,
        seed=run.seed,
        next_draw=start.next_draw,
        first_version=start.step,
    )
    skips = SkippedUpdates(most_in_a_row=config.checks.max_skipped_steps)
    workers.publish_weights(version=start.step)
    if start.step == 0:
        _measure(config, task, workers, tracker, step=0)

    for step in range(start.step, run.steps):
        with tracker.step(step) as metrics:
            with workers.generating(), tracker.phase("generate"):
                taken = stream.take(version=step)
                metrics |= of_rollouts(taken)

            with workers.learning():
                batch = _assigned(taken, config)
                with tracker.phase("reference"):
                    said = _asked(batch, config, workers)
                with tracker.phase("credit"):
                    credited, figures = _credited(batch, said, config, state, workers)
                    metrics |= figures
                with tracker.phase("update"):
                    metrics |= _updated(batch, credited, config, state, workers, step=step)
                    check_agreement(metrics, config.bounds, is_first_update=_sees_its_own_start(config, step))
                with tracker.phase("publish"):
                    published = workers.publish_weights(version=step + 1)
                    tracker.label("weights_checksum", published.manifest.checksum)
                    metrics["weights_bytes"] = float(published.num_bytes)
                    if algorithm.reference_refresh.is_due(step):
                        workers.reference.follow(published.manifest, share=algorithm.reference_refresh.share)

            state = algorithm.next_state(state, metrics)
            if run.is_due(step, every_steps=run.keep_rollouts_every_steps) or metrics["skipped_updates"]:
                write_rollouts(config.run_folder / "rollouts", step + 1, _fetch(taken))
            skips.observe(metrics["skipped_updates"] + metrics.get("critic/skipped_updates", 0.0))

        if run.is_due(step, every_steps=config.evaluation.every_steps):
            _measure(config, task, workers, tracker, step=step + 1)
        if run.is_due(step, every_steps=run.save_every_steps):
            stream.forget_surplus()
            here = Progress(step=step + 1, next_draw=stream.next_draw, algorithm=state, folder=None)
            save_progress(here, config, task, workers, tracker, checkpoints)


def _assigned(taken: Taken, config: Config) -> Assignment:
    """Which rank learns from which response, and for what reward."""
    return assign(
        taken.groups,
        config.algo,
        ranks=config.train.ranks,
        updates_per_step=config.train.updates_per_step,
        horizon=config.rollout.max_response_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What frozen and learning models said of a batch before its first update: references, one a rank."""

    reference: Sequence[ray.ObjectRef]
    critic: Sequence[ray.ObjectRef]


def _asked(batch: Assignment, config: Config, workers: Workers) -> _Said:
    return _Said(
        reference=workers.reference.outputs(batch.shares, temperature=config.rollout.temperature, groups=batch.groups),
        critic=workers.critic.values(batch.shares, groups=batch.groups),
    )


def _credited(
    batch: Assignment, said: _Said, config: Config, state: AlgorithmState, workers: Workers
) -> tuple[Sequence[ray.ObjectRef], Metrics]:
    """What each response is worth, and then each of its tokens: references to what a critic has to learn from it."""
    divergence = workers.policy.look(
        batch.shares,
        config.algo,
        temperature=config.rollout.temperature,
        reference=said.reference,
        critic=said.critic,
        groups=batch.groups,
    )
    own, metrics = advantages(batch, config.algo, state, divergence=divergence)
    return workers.policy.credit(own, config.algo, state), metrics


def _updated(
    batch: Assignment,
    credited: Sequence[ray.ObjectRef],
    config: Config,
    state: AlgorithmState,
    workers: Workers,
    *,
    step: int,
) -> Metrics:
    """Policy and critic learn side by side, on the ranks that own the rows."""
    announced = batch.action_tokens * config.train.epochs_per_step
    of_critic = workers.critic.update(config.algo, credited)
    of_policy = workers.policy.update(config.algo, state) if config.algo.trains_policy(step) else []
    metrics: Metrics = {"skipped_updates": 0.0}
    for name, group, refs in (("", workers.policy, of_policy), ("critic/", workers.critic, of_critic)):
        if refs:
            reports = group.wait(refs, verb="update")
            check_tokens(reports, announced=announced)
            metrics |= {f"{name}{key}": value for key, value in of_update(reports).items()}
    return metrics


def _sees_its_own_start(config: Config, step: int) -> bool:
    """Whether the step's figures are of the very policy that the reference copies."""
    return step == 0 and config.train.updates_per_step * config.train.epochs_per_step == 1


def _load(folder: Path, config: Config, workers: Workers) -> None:
    workers.policy.load(folder)
    workers.critic.load(folder)
    if config.algo.reference_refresh.every_steps:
        workers.reference.load(folder)


def _measure(config: Config, task: OnlineTask, workers: Workers, tracker: Tracker, *, step: int) -> None:
    if config.evaluation.prompts and task.held_out:
        with workers.generating(), tracker.phase("measure"):
            tracker.held_out(step, evaluate(task.held_out, workers, config))


def _fetch(taken: Taken) -> list[Group]:
    return ray.get([item.group for item in taken.groups])
