"""One run of the shipped entry point, and the figures that it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FIGURES = (
    "reward/greedy_responses",
    "reward/uniform_groups_share",
    "critic/value_loss",
    "critic/explained_variance",
    "entropy",
    "kl",
    "clip_low",
    "clip_high",
)
"""Metrics of a step that are told beside the scores, where the algorithm has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run to do.

    Example:
        Run(name="grpo", overrides=("algo=grpo", "run.steps=50"), folder=Path("runs/algorithms"))
    """

    name: str
    overrides: tuple[str, ...]
    folder: Path
    """Of all runs; relative to the repository, where it is inside."""

    @property
    def typed(self) -> tuple[str, ...]:
        """All that the entry point is told."""
        return (*self.overrides, f"run.folder={self.folder}", f"run.name={self.name}", "run.resume=never")

    def do(self) -> Finished:
        """Raises SystemExit with the end of the run's output if it fails."""
        folder = REPOSITORY / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{self.name}.log"
        with log.open("w") as output:
            # A process group of its own: Ctrl-C reaches it once, from here.
            command = [sys.executable, "-m", "engine.main", *self.typed]
            child = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=output, process_group=0)
            try:
                code = child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)
                child.wait()
                raise
        if code != 0:
            end = "\n".join(log.read_text().splitlines()[-20:])
            raise SystemExit(f"the run {self.name} ended with exit code {code}; the end of {log}:\n{end}")
        return Finished.read(folder / self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a run left."""

    summary: Mapping[str, Any]
    steps: Sequence[Mapping[str, float]]
    """metrics.jsonl, one a step."""
    held_out: Sequence[Mapping[str, float]]

    @staticmethod
    def read(folder: Path) -> Finished:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return Finished(
            summary=json.loads((folder / "summary.json").read_text()),
            steps=[row for row in rows if "time/step_s" in row],
            held_out=[row for row in rows if "held_out/sampled" in row],
        )

    def figures(self) -> dict[str, dict[str, float]]:
        """Each of FIGURES that the run has: its bounds over all steps, and where it began and ended."""
        histories = {name: [row[name] for row in self.steps if name in row] for name in FIGURES}
        return {
            name: {
                "min": min(values),
                "max": max(values),
                "mean": fmean(values),
                "first_fifth": fmean(values[: fifth(values)]),
                "last_fifth": fmean(values[-fifth(values) :]),
            }
            for name, values in histories.items()
            if values
        }

    def record(self) -> dict[str, Any]:
        """For a JSON file: scores at the start and the end, the curve, and what makes it again."""
        summary = self.summary
        return {
            "start_greedy": summary["held_out_greedy_before"],
            "final_greedy": summary["held_out_greedy_after"],
            "start_standard_error": summary["held_out_standard_error_before"],
            "final_standard_error": summary["held_out_standard_error_after"],
            "wall_s": summary["wall_s"],
            "origin": summary["origin"],
            "figures": self.figures(),
            "rewards": [round(row["reward/mean"], 4) for row in self.steps],
            "held_out": [
                {"step": row["step"]}
                | {name: round(row[f"held_out/{name}"], 4) for name in ("sampled", "standard_error", "greedy")}
                for row in self.held_out
            ],
        }


def fifth(values: Sequence[float]) -> int:
    return max(1, len(values) // 5)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """At once or not at all: whoever stops the command keeps what was there."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(_text(content) + "\n")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def _text(value: object, depth: int = 0) -> str:
    """JSON with one line for each innermost list and mapping."""
    if not isinstance(value, Mapping) or not any(isinstance(part, (Mapping, list)) for part in value.values()):
        return json.dumps(value)
    indent = " " * (depth + 1)
    lines = (f"{indent}{json.dumps(name)}: {_text(part, depth + 1)}" for name, part in value.items())
    return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}"
