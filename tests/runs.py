"""Runs for tests: the real command in a process of its own, or the same main in this one, and what they left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that has ended."""

    folder: Path
    exit_code: int
    output: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [row for row in self.metrics if "time/step_s" in row]


def run_main(*overrides: str, folder: Path, name: str, timeout_s: float = 900) -> Finished:
    """`python -m engine.main <overrides>`, as a person types it."""
    done = subprocess.run(
        [sys.executable, "-m", "engine.main", *overrides, f"run.folder={folder}", f"run.name={name}"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    return Finished(folder=folder / name, exit_code=done.returncode, output=done.stdout)


def forget_after(whole: Path, stopped: Path, *, checkpoint: str) -> None:
    """Copy a run as it is when it dies some time after a checkpoint: newer metrics are there, newer checkpoints not."""
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "export")
    (stopped / "summary.json").unlink()
    for path in (stopped / "checkpoints").iterdir():
        if path.name != checkpoint:
            shutil.rmtree(path)
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == [checkpoint]
