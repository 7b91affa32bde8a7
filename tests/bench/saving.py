"""Steps a second of a run with checkpoints every ten steps, beside the same run without.

    python -m tests.bench.saving                      # SmolLM2 (nano where its folder is not)
    python -m tests.bench.saving --json saving.json   # the same as JSON; --json alone prints it
    python -m tests.bench.saving --case nano --pairs 1 train.zero_stage=1

Real runs of the real command, in turns. Two saves warm up: until the first checkpoint is removed, the kernel finds new
memory for each file. Of the third it is told what the run waits for, between two steps, and how much longer the step
takes beside which it is written. Both runs must have learned the same, to the bit, or the figure is void; so each step
has the same work in both, and is compared at each run's own pace, which varies by more than the goal on a machine that
is shared. SmolLM2's folder is build/smollm2-135m, or HELIOSTAT_SMOLLM2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.config import load_config
from engine.origin import config_hash, git_version
from tests.bench._output import tell
from tests.bench._runs import REPOSITORY
from tests.bench.start import CASES
from tests.bench.step import SMOLLM2

SAVE_EVERY = 10
SAVED, STEPS = 30, 32
PACE = (*range(24, 31), 32)
"""Steps beside which nothing is written."""
LOOK_EVERY_S = 0.02
QUIET = ("evaluation.prompts=0", f"run.steps={STEPS}", "run.keep_checkpoints=1", "run.resume=never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """One run's."""

    pace_s: float
    """Of a step in PACE."""
    beside_s: float
    """Of the step after SAVED."""
    waited_s: float
    """Between these two."""
    weights: str
    """Checksum of what it ended with."""


def paced(overrides: Sequence[str], *, save_every_steps: int) -> Paced:
    with tempfile.TemporaryDirectory() as folder:
        told = [
            *overrides,
            *QUIET,
            f"run.save_every_steps={save_every_steps}",
            f"run.folder={folder}",
            "run.name=paced",
        ]
        rows, seen = Path(folder) / "paced" / "metrics.jsonl", []
        process = subprocess.Popen([sys.executable, "-m", "engine.main", *told], cwd=REPOSITORY, stdout=sys.stderr)
        while process.poll() is None:
            lines = rows.read_text().count("\n") if rows.exists() else 0
            seen += [time.monotonic()] * (lines - len(seen))
            time.sleep(LOOK_EVERY_S)
        if process.returncode != 0:
            raise SystemExit(f"the run ended with {process.returncode}: {' '.join(told)}")
        steps = [json.loads(line) for line in rows.read_text().splitlines()]
    return Paced(
        pace_s=statistics.mean(steps[step - 1]["time/step_s"] for step in PACE),
        beside_s=steps[SAVED]["time/step_s"],
        waited_s=seen[SAVED] - seen[SAVED - 1] - steps[SAVED]["time/step_s"],
        weights=steps[-1]["weights_checksum"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Medians over the pairs of runs."""

    step_s: float
    """Of a run without checkpoints."""
    waited_s: float
    """For a save, longer than from any step to the next."""
    longer_s: float
    """The step beside which it is written, than at the pace of the others."""
    slower: float
    """Share of its steps a second that a run loses, of as many steps as there are from one save to the next."""


def measured(without: Sequence[Paced], beside: Sequence[Paced]) -> Saving:
    if len({one.weights for one in (*without, *beside)}) > 1:
        raise SystemExit("the runs did not learn the same: the figures are void")
    pairs = list(zip(without, beside, strict=True))
    step_s = statistics.median(one.pace_s for one in without)
    waited_s = statistics.median(own.waited_s - other.waited_s for other, own in pairs)
    longer_s = statistics.median(own.beside_s - other.beside_s * own.pace_s / other.pace_s for other, own in pairs)
    cost_s = waited_s + longer_s
    return Saving(step_s=step_s, waited_s=waited_s, longer_s=longer_s, slower=cost_s / (SAVE_EVERY * step_s + cost_s))


def show(case: str, found: Saving) -> None:
    table = Table("", "a step", "a save: waited", "beside it", f"slower by, every {SAVE_EVERY} steps (goal 2%)")
    table.add_row(
        case, f"{found.step_s:.2f} s", f"{found.waited_s:.2f} s", f"{found.longer_s:.2f} s", f"{found.slower:.1%}"
    )
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--case", choices=CASES, help="one of them (default: SmolLM2 where its folder is)")
    parser.add_argument("--pairs", type=int, default=2, help="of runs in turns")
    parser.add_argument("overrides", nargs="*", help="settings of both")
    asked = parser.parse_args()
    case = asked.case or ("smollm2-135m" if Path(SMOLLM2).exists() else "nano")
    overrides = [*CASES[case], *asked.overrides]
    without, beside = [], []
    for pair in range(asked.pairs):
        # Whoever goes second finds the machine as the first one left it: they take turns.
        for saves in (False, True) if pair % 2 == 0 else (True, False):
            (beside if saves else without).append(paced(overrides, save_every_steps=SAVE_EVERY if saves else 0))
    found = measured(without, beside)
    config = load_config([*overrides, *QUIET])
    origin = {
        "command": " ".join(["python -m tests.bench.saving", *sys.argv[1:]]), "git": git_version(),
        "config": config_hash(config), "seed": config.run.seed, "case": case, "pairs": asked.pairs,
    }  # fmt: skip
    runs = {"without": [asdict(one) for one in without], "beside": [asdict(one) for one in beside]}
    tell(origin | asdict(found) | runs, asked.json, lambda: show(case, found))


if __name__ == "__main__":
    main()
