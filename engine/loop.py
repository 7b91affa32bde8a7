"""Online reinforcement learning, one step from top to bottom: generate, score, look, credit, update, publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from engine.checkpoint import Checkpoints
from engine.config import Config, RunConfig
from engine.dealing import WorkModel
from engine.evaluation import evaluate
from engine.experience import Assignment, advantages, assign
from engine.invariants import SkippedUpdates, check_agreement, check_tokens
from engine.metrics import of_rollouts, of_update
from engine.resume import Progress, save_progress
from engine.rollout_files import FailureList, JudgedGroup, Name, rollouts_of, write_rollouts
from engine.rollout_stream import RolloutStream, Taken
from engine.shown_responses import extremes, shown, told
from engine.tasks import OnlineTask
from engine.tracking import Tracker
from workers.records import AlgorithmState, Group, Metrics
from workers.team import Workers


def train_online(
    config: Config, task: OnlineTask, start: Progress, workers: Workers, tracker: Tracker, checkpoints: Checkpoints
) -> None:
    """Learn from what the policy samples. Weight version n is the policy after n steps.

    With `rollout.max_staleness` above 0 the engines decode the next steps' groups while the trainers learn.
    """
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
        steps=run.steps,
        list_failures=FailureList(config.run_folder / "failures.jsonl", after_step=start.step).add,
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
                    credited = _credited(batch, said, config, state, workers)
                    metrics |= credited.metrics
                with tracker.phase("update"):
                    metrics |= _updated(batch, credited.rows, config, state, workers, step=step)
                    check_agreement(metrics, config.bounds, is_first_update=_sees_its_own_start(config, step))
                with tracker.phase("publish"):
                    metrics |= _published(config, workers, tracker, step=step)

            metrics |= workers.memory()
            state = algorithm.next_state(state, metrics)
            new_alarms = tracker.alarms(metrics)
            if run.is_due(step, every_steps=run.keep_rollouts_every_steps) or metrics["skipped_updates"] or new_alarms:
                _keep(taken, credited.advantages, config.run_folder, step + 1)
            skips.observe(metrics["skipped_updates"] + metrics.get("critic/skipped_updates", 0.0))

        tracker.say_alarms(new_alarms, look_at=rollouts_of(config.run_folder, step + 1))
        _show(taken, tracker, run, step=step)
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
        work=WorkModel.of(config.sizes, shares_prompts=config.train.packing),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Credited:
    """What each response is worth, and then each of its tokens."""

    rows: Sequence[ray.ObjectRef]
    """What a critic has to learn from it."""
    advantages: Mapping[Name, float]
    """Of the responses that are learned from; empty where credit is given token by token."""
    metrics: Metrics


def _credited(batch: Assignment, said: _Said, config: Config, state: AlgorithmState, workers: Workers) -> _Credited:
    divergence = workers.policy.look(
        batch.shares,
        config.algo,
        temperature=config.rollout.temperature,
        reference=said.reference,
        critic=said.critic,
        groups=batch.groups,
    )
    own, metrics = advantages(batch, config.algo, state, divergence=divergence)
    names = [[(row.draw, row.sample) for update in share for row in update.rows] for share in batch.shares]
    worth = {name: float(one) for rank in zip(names, own, strict=True) for name, one in zip(*rank, strict=True)}
    return _Credited(
        rows=workers.policy.credit(own, config.algo, state),
        advantages={} if config.algo.credits_tokens else worth,
        metrics=metrics,
    )


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


def _published(config: Config, workers: Workers, tracker: Tracker, *, step: int) -> Metrics:
    """Rollout engines, and a reference that follows, have the policy's new weights."""
    published, refresh = workers.publish_weights(version=step + 1), config.algo.reference_refresh
    tracker.label("weights_checksum", published.manifest.checksum)
    if refresh.is_due(step):
        workers.reference.follow(published.manifest, share=refresh.share)
    return {"weights_bytes": float(published.num_bytes)}


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


def _keep(taken: Taken, advantages: Mapping[Name, float], run_folder: Path, step: int) -> None:
    judged = [*((item, None) for item in taken.groups), *((item.taken, item.reason) for item in taken.passed_over)]
    groups: list[Group] = ray.get([item.group for item, _ in judged])
    kept = [
        JudgedGroup(group=group, judgements=item.summary.judgements, dropped=reason)
        for group, (item, reason) in zip(groups, judged, strict=True)
    ]
    write_rollouts(run_folder, step, kept, advantages=advantages)


def _show(taken: Taken, tracker: Tracker, run: RunConfig, *, step: int) -> None:
    """The step's best and worst response, where it is time for it; only their groups come to the driver."""
    every_steps = run.show_responses_every_steps
    is_time = every_steps > 0 and run.is_due(step, every_steps=every_steps)
    places = extremes([item.summary for item in taken.groups]) if is_time else None
    if places is not None:
        groups: list[Group] = ray.get([taken.groups[place.group].group for place in places])
        best, worst = (
            shown(group, taken.groups[place.group].summary, sample=place.sample)
            for group, place in zip(groups, places, strict=True)
        )
        tracker.show_lines(told(best, worst, step=step + 1))
