"""A real run of the real command, and the rows of its metrics."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def rows_of_run(overrides: Sequence[str], *, folder: Path, name: str) -> list[dict[str, float]]:
    """What it prints goes to standard error."""
    command = [sys.executable, "-m", "engine.main", *overrides, f"run.folder={folder}", f"run.name={name}"]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr)
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
