"""Does a policy learn as well from rollouts of older weights? nano to 0.9 accuracy, at staleness 0, 1, 2 and 4.

    python -m tests.bench.learning                           # a table, about 12 minutes on two cores
    python -m tests.bench.learning --json learning.json      # the same as JSON; --json alone prints it
    python -m tests.bench.learning --staleness 0 4 --seeds 3 --steps 120

Real runs of the real command, in turns; nothing but `rollout.max_staleness` and the seed differs between them. Seconds
are of the steps alone, without the start and without being measured; a run is measured every 10 steps.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.origin import git_version
from tests.bench._output import tell
from tests.bench._runs import rows_of_run

GOAL, EVERY_STEPS = 0.9, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """One run."""

    staleness: int
    seed: int
    seconds_to_goal: float | None
    """None where it was not reached."""
    steps_to_goal: int | None
    seconds: float
    """Of all steps."""
    sampled: float
    """At the end, as the following two."""
    standard_error: float
    greedy: float
    staleness_mean: float
    mismatch_k3: float
    """Mean over the steps: how far the weights that sampled are from those that learn."""
    effective_share: float
    """Of tokens, after the correction's weights; mean over the steps."""


def learned(staleness: int, seed: int, *, steps: int) -> Learned:
    with tempfile.TemporaryDirectory() as folder:
        typed = [
            f"run.steps={steps}", f"run.seed={seed}",
            f"rollout.max_staleness={staleness}", f"evaluation.every_steps={EVERY_STEPS}", "evaluation.prompts=256",
            "run.save_every_steps=0",
        ]  # fmt: skip
        rows = rows_of_run(typed, folder=Path(folder), name="learning")
    return of_rows(rows, staleness=staleness, seed=seed)


def of_rows(rows: Sequence[dict[str, float]], *, staleness: int, seed: int) -> Learned:
    """
    >>> step = {"time/step_s": 2.0, "staleness/mean": 1.0, "mismatch_k3": 0.0, "correction_ess": 1.0}
    >>> held_out = {"held_out/sampled": 0.95, "held_out/standard_error": 0.01, "held_out/greedy": 1.0}
    >>> rows = [{"step": 1, **step}, {"step": 2, **step}, {"step": 2, **held_out}, {"step": 3, **step}]
    >>> found = of_rows(rows, staleness=1, seed=0)
    >>> found.steps_to_goal, found.seconds_to_goal, found.seconds
    (2, 4.0, 6.0)
    """
    steps = [row for row in rows if "time/step_s" in row]
    held_out = [row for row in rows if "held_out/sampled" in row]
    reached = next((round(row["step"]) for row in held_out if row["held_out/sampled"] >= GOAL), None)
    return Learned(
        staleness=staleness,
        seed=seed,
        seconds_to_goal=None if reached is None else sum(row["time/step_s"] for row in steps[:reached]),
        steps_to_goal=reached,
        seconds=sum(row["time/step_s"] for row in steps),
        sampled=held_out[-1]["held_out/sampled"],
        standard_error=held_out[-1]["held_out/standard_error"],
        greedy=held_out[-1]["held_out/greedy"],
        staleness_mean=statistics.mean(row["staleness/mean"] for row in steps),
        mismatch_k3=statistics.mean(row["mismatch_k3"] for row in steps),
        effective_share=statistics.mean(row["correction_ess"] for row in steps),
    )


def show(found: Sequence[Learned], *, steps: int) -> None:
    table = Table(title=f"nano to {GOAL} sampled accuracy, {steps} steps", title_justify="left")
    for heading in ("staleness", "seed", "s to goal", "steps to goal", "s in all", "sampled", "greedy", "k3", "ess"):
        table.add_column(heading, justify="right")
    for own in found:
        to_goal = (
            ("never", "") if own.seconds_to_goal is None else (f"{own.seconds_to_goal:.1f}", f"{own.steps_to_goal}")
        )
        table.add_row(
            str(own.staleness), str(own.seed), *to_goal, f"{own.seconds:.1f}",
            f"{own.sampled:.3f} +- {own.standard_error:.3f}", f"{own.greedy:.3f}", f"{own.mismatch_k3:.1e}",
            f"{own.effective_share:.3f}",
        )  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seeds", type=int, default=2, help="runs of each")
    parser.add_argument("--steps", type=int, default=80, help="of each run; its learning rate falls with them")
    asked = parser.parse_args()
    found = [
        learned(staleness, seed, steps=asked.steps)
        for seed, staleness in itertools.product(range(asked.seeds), asked.staleness)
    ]
    told = {
        "git": git_version(),
        "command": f"python -m tests.bench.learning {' '.join(sys.argv[1:])}".strip(),
        "runs": [asdict(own) for own in found],
    }
    tell(told, asked.json, lambda: show(found, steps=asked.steps))


if __name__ == "__main__":
    main()
