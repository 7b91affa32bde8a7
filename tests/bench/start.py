"""From the command to the first step: where the start of a run goes, wall seconds of each role and CPU seconds of all.

    python -m tests.bench.start                        # nano, and SmolLM2 where its folder is
    python -m tests.bench.start --json start.json      # the same as JSON; --json alone prints it
    python -m tests.bench.start --case nano --starts 5

Real runs of the real command, in turns: with bytecode kept between runs, and with every process compiling for itself,
as where an installation keeps none. The first of each warms up; medians of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from engine.config import load_config
from engine.origin import config_hash, git_version
from tests.bench._output import tell
from tests.bench.step import REPOSITORY, SMOLLM2

CASES = {
    "nano": (),
    "smollm2-135m": ("experiment=smollm2_sums", f"model.path={SMOLLM2}"),
}
GOAL_S = {"nano": 25.0, "smollm2-135m": 40.0}
KEPT, NOT_KEPT = "kept", "not kept"
LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One run's, until its first step was written."""

    wall_s: float
    """From the command to the first step's beginning."""
    cpu_s: float
    """Of the run's processes and Ray's, until the first step has ended."""
    role_s: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Medians over the starts of one case."""

    case: str
    bytecode: str
    command: str
    git: str
    config: str
    """Hash of all settings."""
    seed: int
    starts: int
    goal_s: float
    wall_s: float
    cpu_s: float
    role_s: dict[str, float]
    """Until Ray was there; then until each role was, side by side."""


def one_start(overrides: Sequence[str], environment: Mapping[str, str]) -> Start:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "engine.main", *overrides, f"run.folder={folder}", "run.name=start"]
        rows = Path(folder) / "start" / "metrics.jsonl"
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
        spent: dict[int, float] = {}
        while process.poll() is None and not (rows.exists() and rows.stat().st_size):
            _look(process.pid, spent)
            time.sleep(LOOK_EVERY_S)
        if process.wait() != 0:
            raise SystemExit(f"the run ended with {process.returncode}: {' '.join(command)}")
        row = json.loads(rows.read_text().splitlines()[0])
    named = {name: seconds for name, seconds in row.items() if name.startswith("time/start/")}
    return Start(
        wall_s=row["time/start_s"],
        cpu_s=sum(spent.values()),
        role_s={name.removeprefix("time/start/").removesuffix("_s"): seconds for name, seconds in named.items()},
    )


def _look(process: int, spent: dict[int, float]) -> None:
    """CPU seconds so far of each process that descends from this one, by its number."""
    try:
        tree = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in tree:
        try:
            times = one.cpu_times()
        except psutil.Error:  # it has ended: what was seen last stands
            continue
        spent[one.pid] = times.user + times.system


def measure(case: str, *, starts: int, cache: str) -> list[Measured]:
    overrides = [*CASES[case], "run.steps=1", "evaluation.prompts=0"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environments = {
        KEPT: clean | {"PYTHONPYCACHEPREFIX": cache},
        NOT_KEPT: clean | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": f"{cache}-empty"},
    }
    seen: dict[str, list[Start]] = {bytecode: [] for bytecode in environments}
    for _ in range(starts + 1):
        for bytecode, environment in environments.items():
            seen[bytecode].append(one_start(overrides, environment))
    config = load_config(overrides)
    return [
        Measured(
            case=case,
            bytecode=bytecode,
            command=" ".join(["python -m engine.main", *overrides]),
            git=git_version(),
            config=config_hash(config),
            seed=config.run.seed,
            starts=starts,
            goal_s=GOAL_S[case],
            wall_s=statistics.median(start.wall_s for start in warm),
            cpu_s=statistics.median(start.cpu_s for start in warm),
            role_s={name: statistics.median(start.role_s[name] for start in warm) for name in warm[0].role_s},
        )
        for bytecode, (_, *warm) in seen.items()
    ]


def show(measured: Sequence[Measured]) -> None:
    table = Table(title="seconds from the command to the first step", title_justify="left")
    roles = list(dict.fromkeys(name for one in measured for name in one.role_s))
    for heading in ("", "bytecode", "goal", "first step", "CPU", *roles):
        table.add_column(heading, justify="right" if heading else "left")
    for one in measured:
        of_roles = [f"{one.role_s[name]:.1f}" if name in one.role_s else "" for name in roles]
        table.add_row(one.case, one.bytecode, f"{one.goal_s:.0f}", f"{one.wall_s:.1f}", f"{one.cpu_s:.1f}", *of_roles)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--case", choices=list(CASES), help="one of them (default: all)")
    parser.add_argument("--starts", type=int, default=3, help="of each kind, after one that warms up")
    asked = parser.parse_args()
    cases = [case for case in CASES if asked.case in (None, case)]
    if not (REPOSITORY / SMOLLM2).exists():
        print(f"smollm2-135m is left out: no model in {SMOLLM2} (see examples/smollm2)", file=sys.stderr)
        cases = [case for case in cases if case != "smollm2-135m"]
    with tempfile.TemporaryDirectory() as cache:
        measured = [
            one for case in cases for one in measure(case, starts=asked.starts, cache=str(Path(cache) / "bytecode"))
        ]
    tell([asdict(one) for one in measured], asked.json, lambda: show(measured))


if __name__ == "__main__":
    main()
