"""Offline stages: batches of a data set through an objective, on the same trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.algorithms.base import LanguageObjective, Objective
from engine.config import Config
from engine.invariants import SkippedUpdates, check_tokens
from engine.metrics import of_update
from engine.references import References
from engine.resume import Progress, SavePoints, Start
from engine.tasks import OfflineTask
from engine.tracking import Tracker
from workers.lessons import Lesson, Share
from workers.records import Totals
from workers.team import Workers


def train_offline(
    config: Config, task: OfflineTask, start: Start, workers: Workers, tracker: Tracker, saves: SavePoints
) -> None:
    """One optimizer step a batch of lessons; they come in an order keyed by (seed, epoch)."""
    run, objective, ranks = config.run, config.algo, config.train.ranks
    source = task.lessons_from(start.progress.next_draw, start.progress.lessons_taken)
    references = References(config) if _needs_reference(objective) else None
    if references:
        references.complete(_all_to_come(config, task, start.progress), workers, tracker, ranks=ranks)
    if start.folder is not None:
        workers.policy.load(start.folder)

    def deal(lessons: Sequence[Lesson]) -> list[Share]:
        shares = by_length(lessons, ranks)
        return [references.share(own) if references else Share(lessons=own, reference=()) for own in shares]

    def measure(step: int) -> None:
        is_due = step == 0 or run.is_due(step - 1, every_steps=config.evaluation.every_steps)
        if is_due and task.held_out and not tracker.has_measured(step):
            with saves.may_stop(), tracker.phase("measure"):
                totals = totals_of(task.held_out, horizon=config.model.context_length)
                reports = workers.policy.assess(deal(task.held_out), totals, objective)
                tracker.held_out_figures(step, of_update(reports))

    skips = SkippedUpdates(most_in_a_row=config.checks.max_skipped_steps)
    with saves.between_steps():
        measure(step=start.step)
        for step in range(start.step, run.steps):
            with tracker.step(step) as metrics, tracker.phase("update"):
                with saves.may_stop():
                    lessons = objective.assemble(source.take(config.train.examples_per_step))
                totals = totals_of(lessons, horizon=config.model.context_length)
                reports = workers.policy.fit(deal(lessons), totals, objective)
                check_tokens(reports, announced=totals.tokens)
                metrics |= of_update(reports) | {"tokens": float(sum(lesson.num_tokens for lesson in lessons))}
                metrics |= workers.vitals()
                new_alarms = tracker.alarms(metrics, responses=tracker.folder / "metrics.jsonl")
                skips.observe(metrics["skipped_updates"], batch=", ".join(lesson.id for lesson in lessons))

            here = Progress(
                step=step + 1,
                next_draw=source.next_draw,
                lessons_taken=source.lessons_taken,
                algorithm=start.progress.algorithm,
            )
            saves.reached(here)
            tracker.say_alarms(new_alarms)
            measure(step + 1)
            if source.bad.found and run.is_due(step, every_steps=run.save_every_steps):
                tracker.say(f"{len(source.bad.found)} rows were left out so far: {source.bad.write(config.run_folder)}")
            saves.save_where_due()


def totals_of(lessons: Sequence[Lesson], *, horizon: int) -> Totals:
    """What the losses of a step divide by."""
    learned = [example for lesson in lessons for example in lesson.examples if example.is_learned_from]
    return Totals(
        tokens=sum(lesson.trained_tokens for lesson in lessons),
        sequences=len(learned),
        prompts=len(lessons),
        horizon=horizon,
    )


def by_length(lessons: Sequence[Lesson], ranks: int) -> list[tuple[Lesson, ...]]:
    """Every rank gets lessons of all lengths."""
    ordered = sorted(lessons, key=lambda lesson: -lesson.num_tokens) if ranks > 1 else lessons
    return [tuple(ordered[rank::ranks]) for rank in range(ranks)]


def _needs_reference(objective: Objective) -> bool:
    return isinstance(objective, LanguageObjective) and objective.needs.reference


def _all_to_come(config: Config, task: OfflineTask, start: Progress) -> Iterator[Lesson]:
    """Every lesson that the run will look at from here on."""
    yield from task.held_out
    source = task.lessons_from(start.next_draw, start.lessons_taken)
    for _ in range(start.step, config.run.steps):
        yield from config.algo.assemble(source.take(config.train.examples_per_step))
