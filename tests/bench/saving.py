"""Steps a second of a run with checkpoints every ten steps, beside the same run without.

    python -m tests.bench.saving                      # SmolLM2 (nano where its folder is not)
    python -m tests.bench.saving --json saving.json   # the same as JSON; --json alone prints it
    python -m tests.bench.saving --case nano --pairs 1 train.zero_stage=1

Real runs of the real command, in turns. The first save warms up (the kernel finds memory for the files); a run's pace
is from the end of the step after it to the end of the last, with one save: what it waits for, and what is written
beside the steps after. Both must have learned the same, to the bit, or the figure is void. Steps alone vary by more
than the goal on a machine that is shared, so what a run waits for is told apart: the time between two steps. SmolLM2's
folder is build/smollm2-135m, or HELIOSTAT_SMOLLM2.
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
FIRST, LAST_SAVED, STEPS = 11, 20, 22
LOOK_EVERY_S = 0.02
QUIET = ("evaluation.prompts=0", f"run.steps={STEPS}", "run.keep_checkpoints=1", "run.resume=never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """One run's."""

    seconds: float
    """From the end of step FIRST to the end of the last."""
    waited_s: float
    """Between the step after which it saves, where it does, and the next one."""
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
        seconds=seen[STEPS - 1] - seen[FIRST - 1],
        waited_s=seen[LAST_SAVED] - seen[LAST_SAVED - 1] - steps[LAST_SAVED]["time/step_s"],
        weights=steps[-1]["weights_checksum"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Medians over the pairs of runs."""

    step_s: float
    """Without checkpoints."""
    saving_step_s: float
    waited_share: float
    """Of a save: what the run waits for, over the time of as many steps as there are from one save to the next."""
    slower: float
    """Share of its steps a second that a run loses."""


def measured(without: Sequence[Paced], beside: Sequence[Paced]) -> Saving:
    if len({one.weights for one in (*without, *beside)}) > 1:
        raise SystemExit("the runs did not learn the same: the figures are void")
    return Saving(
        step_s=statistics.median(one.seconds for one in without) / (STEPS - FIRST),
        saving_step_s=statistics.median(one.seconds for one in beside) / (STEPS - FIRST),
        waited_share=statistics.median(
            (b.waited_s - a.waited_s) / (SAVE_EVERY * a.seconds / (STEPS - FIRST))
            for a, b in zip(without, beside, strict=True)
        ),
        slower=1.0 - statistics.median(a.seconds / b.seconds for a, b in zip(without, beside, strict=True)),
    )


def show(case: str, found: Saving) -> None:
    table = Table("", "a step", f"with a checkpoint every {SAVE_EVERY}", "waited", "slower by (goal 2%)")
    table.add_row(
        case,
        f"{found.step_s:.2f} s",
        f"{found.saving_step_s:.2f} s",
        f"{found.waited_share:.1%}",
        f"{found.slower:.1%}",
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
