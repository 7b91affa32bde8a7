"""What must hold in every step, whatever is being learned. A violation is a bug or a broken machine: the run stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.config import Bounds
from workers.stopped import RunStopped
from workers.tally import UpdateReport


class InvariantViolated(RunStopped):
    """Something that must hold did not: says what, the numbers, and what usually causes it."""


def check_tokens(reports: Sequence[UpdateReport], *, announced: int) -> None:
    """Every action token was learned from once: the ranks' masks add up to the totals that the losses divided by."""
    seen = sum(report.action_tokens for report in reports)
    if seen != announced:
        raise InvariantViolated(
            f"the trainer's masks let {seen} tokens through, but the losses were divided by {announced}: "
            "tokens were lost or learned from twice between the rollout engine and the trainer"
        )


def check_agreement(metrics: Mapping[str, float], bounds: Bounds, *, is_first_update: bool) -> None:
    """Rollout engine, trainer and reference say the same of the same tokens."""
    limits = {
        "logprob_gap_mean": (
            bounds.logprob_gap_mean,
            "the rollout engine does not serve the trainer's weights, or computes log-probs differently",
        ),
        "logprob_gap_max": (bounds.logprob_gap_max, "one token is far off: a rare path of a kernel, or stale keys"),
        "ratio_deviation": (bounds.ratio_deviation, "the trainer's own forward pass is not repeatable"),
    }
    if is_first_update:
        limits["kl"] = (bounds.kl_at_start, "the reference model is not the policy that the run starts from")
    for name, (limit, cause) in limits.items():
        value = metrics.get(name, 0.0)
        if not value <= limit:
            key = "kl_at_start" if name == "kl" else name
            raise InvariantViolated(f"{name} is {value:.3g}, above checks.{key}={limit:g}: {cause}")


class SkippedUpdates:
    """Counts optimizer steps that were skipped because a gradient was not finite."""

    def __init__(self, *, most_in_a_row: int) -> None:
        self._most, self._in_a_row = most_in_a_row, 0

    def observe(self, skipped: float, *, batch: str | Path) -> None:
        """`batch`: what the step learned from, or where that is kept.

        Raises InvariantViolated when too many steps in a row had to be skipped.
        """
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if self._in_a_row > self._most:
            raise InvariantViolated(
                f"{self._in_a_row} steps in a row had a gradient that is not finite, more than "
                f"checks.max_skipped_steps={self._most}: lower train.learning_rate, or look at what the last of them "
                f"learned from: {batch}"
            )
