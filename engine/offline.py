"""Offline stages: batches of a data set through an objective, on the same trainer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.checkpoint import Checkpoints
from engine.config import Config
from engine.invariants import SkippedUpdates, check_tokens
from engine.metrics import of_update
from engine.resume import Progress, save_progress
from engine.rollout_stream import Ledger
from engine.tasks import OfflineTask
from engine.tracking import Tracker
from workers.records import Example, Totals
from workers.team import Workers


def train_offline(
    config: Config, task: OfflineTask, start: Progress, workers: Workers, tracker: Tracker, checkpoints: Checkpoints
) -> None:
    """One optimizer step a batch of rows; rows come in an order keyed by (seed, epoch)."""
    run, ranks = config.run, config.train.ranks
    if start.folder is not None:
        workers.policy.load(start.folder)
    ledger = Ledger(num_prompts=len(task.examples), seed=run.seed, next_draw=start.next_draw)
    skips = SkippedUpdates(most_in_a_row=config.checks.max_skipped_steps)
    if start.step == 0:
        _measure(task, workers, tracker, ranks=ranks, step=0)

    for step in range(start.step, run.steps):
        with tracker.step(step) as metrics, tracker.phase("update"):
            rows = [task.examples[ledger.admit()[1]] for _ in range(config.train.examples_per_step)]
            totals = _totals(rows, horizon=config.model.context_length)
            reports = workers.policy.fit(_deal(rows, ranks), totals, config.algo)
            check_tokens(reports, announced=totals.tokens)
            metrics |= of_update(reports) | {"tokens": float(sum(len(row.token_ids) for row in rows))}
            skips.observe(metrics["skipped_updates"])

        if run.is_due(step, every_steps=config.evaluation.every_steps):
            _measure(task, workers, tracker, ranks=ranks, step=step + 1)
        if run.is_due(step, every_steps=run.save_every_steps):
            here = Progress(step=step + 1, next_draw=ledger.next_draw, algorithm=start.algorithm, folder=None)
            save_progress(here, config, task, workers, tracker, checkpoints)


def _totals(rows: Sequence[Example], *, horizon: int) -> Totals:
    return Totals(tokens=sum(sum(row.mask) for row in rows), sequences=len(rows), prompts=len(rows), horizon=horizon)


def _deal(rows: Sequence[Example], ranks: int) -> list[tuple[Example, ...]]:
    """Every rank gets rows of all lengths."""
    by_length = sorted(rows, key=lambda row: -len(row.token_ids)) if ranks > 1 else rows
    return [tuple(by_length[rank::ranks]) for rank in range(ranks)]


def _measure(task: OfflineTask, workers: Workers, tracker: Tracker, *, ranks: int, step: int) -> None:
    """Mean negative log-likelihood of the held-out rows' trained tokens."""
    if not task.held_out:
        return
    with tracker.phase("measure"):
        sums = workers.policy.evaluate([task.held_out[rank::ranks] for rank in range(ranks)])
    nll, tokens = np.sum(sums, axis=0)
    tracker.held_out_loss(step, float(nll / tokens))
