"""Steps a second of a run with checkpoints every ten steps, beside the same run without.

    python -m tests.bench.saving                      # SmolLM2 (nano where its folder is not)
    python -m tests.bench.saving --json saving.json   # the same as JSON; --json alone prints it
    python -m tests.bench.saving --case nano --pairs 1 train.zero_stage=1

Real runs of the real command, in turns. Of each save it is told what the run waits for, between two steps, and how much
longer the step takes beside which it is written. Both runs must have learned the same, to the bit, or the figures are
void; so each step has the same work in both, and is compared at each run's own pace, which varies by more than the goal
on a machine that is shared. SmolLM2's folder is build/smollm2-135m, or HELIOSTAT_SMOLLM2.
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
SAVED, STEPS = (10, 20, 30), 32
PACE = tuple(step for step in range(4, STEPS + 1) if step - 1 not in SAVED)
"""Steps beside which nothing is written, of those that no longer warm up."""
LOOK_EVERY_S = 0.02
QUIET = ("evaluation.prompts=0", f"run.steps={STEPS}", "run.keep_checkpoints=1", "run.resume=never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """One run's."""

    pace_s: float
    """Of a step in PACE."""
    beside_s: tuple[float, ...]
    """Of the steps after those in SAVED."""
    waited_s: tuple[float, ...]
    """Between these."""
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
        beside_s=tuple(steps[step]["time/step_s"] for step in SAVED),
        waited_s=tuple(seen[step] - seen[step - 1] - steps[step]["time/step_s"] for step in SAVED),
        weights=steps[-1]["weights_checksum"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Medians over the saves of all pairs of runs."""

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
    waited_s, longer_s, slower = [], [], []
    for other, own in zip(without, beside, strict=True):
        for save in range(len(SAVED)):
            waited_s.append(own.waited_s[save] - other.waited_s[save])
            longer_s.append(own.beside_s[save] - other.beside_s[save] * own.pace_s / other.pace_s)
            cost_s = waited_s[-1] + longer_s[-1]
            slower.append(cost_s / (SAVE_EVERY * own.pace_s + cost_s))
    return Saving(
        step_s=statistics.median(one.pace_s for one in without),
        waited_s=statistics.median(waited_s),
        longer_s=statistics.median(longer_s),
        slower=statistics.median(slower),
    )


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
