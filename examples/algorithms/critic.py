"""What PPO's critic gets to know, on sums of which half are larger than any that the policy was taught.

The default run's own mistakes are made by chance, about as often for every sum: nobody can tell them beforehand.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from examples.algorithms.runs import Run, write_json

SETTINGS = ("algo=ppo", "data.largest=140", "evaluation.prompts=0")
FIGURES = ("critic/value_loss", "critic/explained_variance")


def planned(folder: Path, settings: Sequence[str]) -> Iterator[Run]:
    yield Run(name="critic", overrides=(*SETTINGS, *settings), folder=folder)


def compare(folder: Path, settings: Sequence[str], results: Path, console: Console) -> None:
    """Writes `results`, with the two figures of every step."""
    [run] = planned(folder, settings)
    finished = run.do()
    figures = finished.figures()
    content = {
        "again": shlex.join(["python", "examples/algorithms/compare.py", "--critic", *settings]),
        "steps": finished.summary["steps"],
        "wall_s": finished.summary["wall_s"],
        "origin": finished.summary["origin"],
        **{name: figures[name] for name in FIGURES},
        **{f"{name} by step": [round(row[name], 4) for row in finished.steps] for name in FIGURES},
    }
    write_json(results, content)
    for name in FIGURES:
        first, last = figures[name]["first_fifth"], figures[name]["last_fifth"]
        console.print(f"{name}: {first:.3f} in the first fifth of the steps, {last:.3f} in the last", highlight=False)
