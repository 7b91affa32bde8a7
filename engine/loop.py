"""Online reinforcement learning, one step from top to bottom: generate, score, credit, update, publish."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from engine.checkpoint import Checkpoints
from engine.config import Config
from engine.evaluation import evaluate
from engine.experience import Assignment, assign
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
        workers.policy.load(start.folder)
    stream = RolloutStream(
        task.prompts,
        workers,
        rollout=config.rollout,
        reward=config.reward,
        keep=algorithm.keep,
        seed=run.seed,
        next_draw=start.next_draw,
        accepted=start.step * config.rollout.prompts_per_step,
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
                batch = _credited(taken, config)
                with tracker.phase("reference"):
                    frozen = workers.reference.outputs(
                        batch.shares, temperature=config.rollout.temperature, groups=batch.groups
                    )
                with tracker.phase("update"):
                    metrics |= _update(batch, frozen, state, config, workers)
                    # With one update a step, the first step's loss still sees the policy that the reference copies.
                    at_start = step == 0 and config.train.updates_per_step == 1
                    check_agreement(metrics, config.bounds, is_first_update=at_start)
                with tracker.phase("publish"):
                    published = workers.publish_weights(version=step + 1)
                    tracker.label("weights_checksum", published.checksum)
                    metrics["weights_bytes"] = float(published.num_bytes)

            state = algorithm.next_state(state, metrics)
            if run.is_due(step, every_steps=run.keep_rollouts_every_steps) or metrics["skipped_updates"]:
                write_rollouts(config.run_folder / "rollouts", step + 1, _fetch(taken))
            skips.observe(metrics["skipped_updates"])

        if run.is_due(step, every_steps=config.evaluation.every_steps):
            _measure(config, task, workers, tracker, step=step + 1)
        if run.is_due(step, every_steps=run.save_every_steps):
            here = Progress(step=step + 1, next_draw=stream.next_draw, algorithm=state, folder=None)
            save_progress(here, config, task, workers, tracker, checkpoints)


def _credited(taken: Taken, config: Config) -> Assignment:
    """What each response is worth, and which rank learns from it."""
    return assign(
        taken.groups,
        config.algo,
        ranks=config.train.ranks,
        updates_per_step=config.train.updates_per_step,
        horizon=config.rollout.max_response_tokens,
    )


def _update(
    batch: Assignment, frozen: Sequence[ray.ObjectRef], state: AlgorithmState, config: Config, workers: Workers
) -> Metrics:
    """Learn from the batch, on the ranks that own its rows."""
    reports = workers.policy.update(
        batch.shares,
        config.algo,
        state,
        temperature=config.rollout.temperature,
        frozen_outputs=frozen,
        groups=batch.groups,
    )
    check_tokens(reports, announced=batch.action_tokens)
    return of_update(reports) | {"advantage_std": batch.advantage_std}


def _measure(config: Config, task: OnlineTask, workers: Workers, tracker: Tracker, *, step: int) -> None:
    if config.evaluation.prompts and task.held_out:
        with workers.generating(), tracker.phase("measure"):
            tracker.held_out(step, evaluate(task.held_out, workers, config))


def _fetch(taken: Taken) -> list[Group]:
    return ray.get([item.group for item in taken.groups])
