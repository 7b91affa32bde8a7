"""Online reinforcement learning, one step from top to bottom: generate, score, look, credit, update, publish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ray

from engine.carried import load_carried, save_carried
from engine.config import Config, RunConfig
from engine.evaluation import evaluate
from engine.group_files import JudgedGroup, Name
from engine.invariants import InvariantViolated, SkippedUpdates, check_agreement
from engine.learning import Credited, ask_models, credit, deal_out, publish, update
from engine.metrics import of_rollouts
from engine.resume import Progress, SavePoints, Start
from engine.rollout_files import FailureList, rollouts_of, write_rollouts
from engine.rollout_stream import RolloutStream, Taken
from engine.shown_responses import extremes, shown, told
from engine.tasks import OnlineTask
from engine.tracking import Tracker
from workers.records import Group
from workers.team import Workers


def train_online(
    config: Config, task: OnlineTask, start: Start, workers: Workers, tracker: Tracker, saves: SavePoints
) -> None:
    """Learn from what the policy samples. Weight version n is the policy after n steps.

    With `rollout.max_staleness` above 0 the engines decode the next steps' groups while the trainers learn.
    """
    algorithm, run, state = config.algo, config.run, start.progress.algorithm
    if start.folder is not None:
        _load(start.folder, config, workers)
    stream = _stream(config, task, start, workers)
    skips = SkippedUpdates(most_in_a_row=config.checks.max_skipped_steps)
    workers.publish_weights(version=start.step)
    with saves.between_steps():
        _measure(config, task, workers, tracker, saves, step=start.step)
        for step in range(start.step, run.steps):
            with tracker.step(step) as metrics:
                with saves.may_stop(), workers.generating(), tracker.phase("generate"):
                    taken = stream.take(version=step)
                    metrics |= of_rollouts(taken)

                with workers.learning():
                    batch = deal_out(taken.groups, config)
                    with tracker.phase("reference"):
                        said = ask_models(batch, config, workers)
                    with tracker.phase("credit"):
                        credited = credit(batch, said, config, state, workers)
                        metrics |= credited.metrics
                    with tracker.phase("update"), _kept_if_violated(taken, credited, config.run_folder, step + 1):
                        metrics |= update(batch, credited.rows, config, state, workers, step=step)
                        check_agreement(metrics, config.bounds, is_first_update=_sees_its_own_start(config, step))
                    with tracker.phase("publish"):
                        published = publish(config, workers, step=step)
                        tracker.label("weights_checksum", published.manifest.checksum)
                        metrics |= {"weights_bytes": float(published.num_bytes)}

                metrics |= workers.vitals()
                kept_at = rollouts_of(config.run_folder, step + 1)
                state = algorithm.next_state(state, metrics)
                new_alarms = tracker.alarms(metrics, responses=kept_at)
                is_due = run.is_due(step, every_steps=run.keep_rollouts_every_steps)
                skipped = metrics["skipped_updates"] + metrics.get("critic/skipped_updates", 0.0)
                if is_due or skipped or new_alarms:
                    _keep(taken, credited.advantages, config.run_folder, step + 1)
                skips.observe(skipped, batch=kept_at)

            here = Progress(step=step + 1, next_draw=stream.next_draw, lessons_taken=0, algorithm=state)
            saves.reached(here, write_more=partial(save_carried, stream.carried))
            tracker.say_alarms(new_alarms)
            _show(taken, tracker, run, step=step)
            _measure(config, task, workers, tracker, saves, step=step + 1)
            saves.save_where_due()


def _stream(config: Config, task: OnlineTask, start: Start, workers: Workers) -> RolloutStream:
    return RolloutStream(
        task.prompts,
        workers,
        rollout=config.rollout,
        reward=config.reward,
        algorithm=config.algo,
        seed=config.run.seed,
        next_draw=start.progress.next_draw,
        carried=load_carried(start.folder),
        steps=config.run.steps,
        list_failures=FailureList(config.run_folder / "failures.jsonl", after_step=start.step).add,
    )


def _sees_its_own_start(config: Config, step: int) -> bool:
    """Whether the step's figures are of the very policy that the reference copies."""
    return step == 0 and config.train.updates_per_step * config.train.epochs_per_step == 1


def _load(folder: Path, config: Config, workers: Workers) -> None:
    workers.policy.load(folder)
    workers.critic.load(folder)
    if config.algo.reference_refresh.every_steps:
        workers.reference.load(folder)


def _measure(
    config: Config, task: OnlineTask, workers: Workers, tracker: Tracker, saves: SavePoints, *, step: int
) -> None:
    """What the policy can do after so many steps, where it is time for it, and a run that stopped has not done it."""
    is_due = step == 0 or config.run.is_due(step - 1, every_steps=config.evaluation.every_steps)
    if is_due and config.evaluation.prompts and task.held_out and not tracker.has_measured(step):
        with saves.may_stop(), workers.generating(), tracker.phase("measure"):
            tracker.held_out(step, evaluate(task.held_out, workers, config))


@contextmanager
def _kept_if_violated(taken: Taken, credited: Credited, run_folder: Path, step: int) -> Iterator[None]:
    """What a step learned from that may not go on can be looked at."""
    try:
        yield
    except InvariantViolated as violated:
        _keep(taken, credited.advantages, run_folder, step)
        violated.add_note(f"the step's responses are in {rollouts_of(run_folder, step)}")
        raise


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
