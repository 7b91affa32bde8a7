"""What workers say of their memory, as metrics of a step."""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from workers.memory import resident_gib
from workers.records import Metrics

MOST_S = 0.05
"""A step waits for it at most. Judges may be busy with the next step's responses."""


def memory_of(peaks: Sequence[tuple[str, ObjectRef]]) -> Metrics:
    """`memory/<role>/<verb>_gib` and `memory/<role>/resident_gib`, the largest over the copies of a role that answered
    at once; and what the driver holds itself."""
    roles = {ref: role for role, ref in peaks}
    there, _ = ray.wait(list(roles), num_returns=len(roles), timeout=MOST_S)
    metrics: Metrics = {"memory/driver/resident_gib": resident_gib()}
    try:
        answers = ray.get(there)
    except RayError:  # whoever needs that worker next says what ended it
        return metrics
    for ref, said in zip(there, answers, strict=True):
        for name, gib in said.items():
            key = f"memory/{roles[ref]}/{name}"
            metrics[key] = max(metrics.get(key, 0.0), gib)
    return metrics
