"""What every worker says of itself once a step: what its memory went to, and whether it came in another's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from workers.memory import resident_gib
from workers.records import Metrics

MOST_S = 0.05
"""A step waits for it at most. Judges may be busy with the next step's responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """Of one process."""

    life: str
    """No other process has this one."""
    replaces_another: bool
    memory_gib: dict[str, float]
    """As `Peaks.take` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A worker, and what it answers."""

    role: str
    name: str
    vitals: ObjectRef


def replaces_another() -> bool:
    """Whether the actor that asks is one that Ray made in place of one of the same name, whose process died."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


class RollCall:
    """Knows who was replaced. Ray does that by itself, and where the worker was idle nothing else tells of it."""

    def __init__(self, announce: Callable[[str], None], log_path: Callable[[str], Path]) -> None:
        """`log_path`: of a worker's own log, by its name."""
        self._announce, self._log_path = announce, log_path
        self._known: set[str] = set()
        """Lives of workers in another's place."""

    def metrics(self, asked: Sequence[Asked]) -> Metrics:
        """`memory/<role>/<verb>_gib` and `memory/<role>/resident_gib`, the largest over the copies of a role that
        answered at once, and what the driver holds itself; `replaced_workers` since the last time. Announces those."""
        metrics: Metrics = {"memory/driver/resident_gib": resident_gib(), "replaced_workers": 0.0}
        for one, vitals in _answers(asked):
            for name, gib in vitals.memory_gib.items():
                key = f"memory/{one.role}/{name}"
                metrics[key] = max(metrics.get(key, 0.0), gib)
            if vitals.replaces_another and vitals.life not in self._known:
                self._known.add(vitals.life)
                metrics["replaced_workers"] += 1.0
                self._announce(f"{one.name} died and was replaced; what it said is in {self._log_path(one.name)}")
        return metrics


def _answers(asked: Sequence[Asked]) -> Iterator[tuple[Asked, Vitals]]:
    """Of those who answer at once."""
    by_ref = {one.vitals: one for one in asked}
    there, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=MOST_S)
    for ref in there:
        try:
            yield by_ref[ref], ray.get(ref)
        except RayError:  # whoever needs that worker next says what ended it
            continue
