"""Where the time of a step goes: generate, score, reference, credit, update, sync, rest.

    python -m tests.bench.step                        # nano, and SmolLM2 where its folder is
    python -m tests.bench.step --json step.json       # the same as JSON; --json alone prints it
    python -m tests.bench.step --case nano --steps 20
    python -m tests.bench.step --json step.json --before step_before.json --svg step.svg    # a picture of both

Real runs of the real command; each figure is the mean over the steps after the first ones, which warm up. Read the
shares: seconds are of one machine. SmolLM2's folder is build/smollm2-135m, or HELIOSTAT_SMOLLM2 (examples/smollm2).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.config import load_config
from engine.origin import config_hash, git_version
from tests.bench._output import tell
from tests.bench._runs import REPOSITORY, rows_of_run
from tests.bench._timeline import Bar, Panel, svg

SMOLLM2 = os.environ.get("HELIOSTAT_SMOLLM2", "build/smollm2-135m")
"""Relative to the repository, where the runs are started."""
WARM_UP_STEPS = 2
PHASES = {
    "generate": "generate",
    "reference": "reference",
    "credit": "credit",
    "update": "update",
    "publish": "sync",
}
"""A run's phase -> its name here. Scoring goes on beside generation: it is told apart, and is no share of the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run to look at."""

    name: str
    overrides: tuple[str, ...]
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Means over the steps of one run."""

    case: str
    command: str
    git: str
    config: str
    """Hash of all settings."""
    seed: int
    steps: int
    step_s: float
    phase_s: dict[str, float]
    """Phases follow each other; with `rest` they add up to `step_s`."""
    score_s: float
    """Of one reward worker, beside generation."""
    tokens_per_s: float


CASES = (
    Case(name="nano", overrides=(), steps=12),
    Case(
        name="smollm2-135m",
        overrides=("experiment=smollm2_sums", f"model.path={SMOLLM2}", "algo.kl_coef=0.04"),
        steps=5,
    ),
)


def measure(case: Case, folder: Path) -> Measured:
    overrides = [*case.overrides, f"run.steps={case.steps}", "evaluation.prompts=0"]
    config = load_config([*overrides, f"run.folder={folder}"])
    rows = rows_of_run(overrides, folder=folder, name=case.name)
    rows = [row for row in rows if row["step"] > WARM_UP_STEPS]
    phase_s = {name: _mean(rows, f"time/{phase}_s") for phase, name in PHASES.items()}
    step_s = _mean(rows, "time/step_s")
    return Measured(
        case=case.name,
        command=" ".join(["python -m engine.main", *overrides]),
        git=git_version(),
        config=config_hash(config),
        seed=config.run.seed,
        steps=len(rows),
        step_s=step_s,
        phase_s=phase_s | {"rest": step_s - sum(phase_s.values())},
        score_s=_mean(rows, "reward/judging_s") / config.reward.workers,
        tokens_per_s=_mean(rows, "tokens_per_s"),
    )


def show(measured: Sequence[Measured]) -> None:
    table = Table(title="mean seconds of a step, and their share", title_justify="left")
    for heading in ("", *measured[0].phase_s, "step", "score (beside generate)", "tokens/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in measured:
        shares = [f"{seconds:.3f}  {seconds / one.step_s:4.0%}" for seconds in one.phase_s.values()]
        table.add_row(one.case, *shares, f"{one.step_s:.3f}", f"{one.score_s:.3f}", f"{one.tokens_per_s:,.0f}")
    Console(width=130).print(table)


def timeline(before: Sequence[Measured], now: Sequence[Measured]) -> str:
    """A mean step of each case as two versions do it, one phase behind the other; a case's earlier step is as wide as
    the picture."""
    panels = []
    for was, one in ((was, one) for was in before for one in now if was.case == one.case):
        bars = [bar for row, of in (("before", was), ("now", one)) for bar in _bars(of, row=row, unit_s=was.step_s)]
        title = f"{one.case}: {was.step_s:.3g} s before ({was.git}), {one.step_s:.3g} s now ({one.git})"
        panels.append(Panel(title=title, bars=tuple(bars), marks_s=()))
    return svg(panels, seconds=1.0)


def _bars(measured: Measured, *, row: str, unit_s: float) -> Iterator[Bar]:
    start = 0.0
    for phase, seconds in measured.phase_s.items():
        yield Bar(row=row, what=phase, start_s=start / unit_s, end_s=(start + seconds) / unit_s)
        start += seconds


def _mean(rows: Sequence[dict[str, float]], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="one of them (default: all)")
    parser.add_argument("--steps", type=int, help=f"of each run; the first {WARM_UP_STEPS} warm up")
    parser.add_argument("--before", metavar="FILE", help="what --json of another version wrote, on this machine")
    parser.add_argument("--svg", metavar="FILE", help="a picture of a step as that version does it, and as this one")
    asked = parser.parse_args()
    if bool(asked.before) != bool(asked.svg):
        parser.error("--before and --svg go together")
    if asked.steps is not None and asked.steps <= WARM_UP_STEPS:
        parser.error(f"--steps is {asked.steps}: the first {WARM_UP_STEPS} steps are not measured")
    cases = [case for case in CASES if asked.case in (None, case.name)]
    if not (REPOSITORY / SMOLLM2).exists():
        print(f"smollm2-135m is left out: no model in {SMOLLM2} (see examples/smollm2)", file=sys.stderr)
        cases = [case for case in cases if case.name != "smollm2-135m"]
    if not cases:
        sys.exit(2)
    before = [Measured(**one) for one in json.loads(Path(asked.before).read_text())] if asked.before else []
    with tempfile.TemporaryDirectory() as folder:
        measured = [
            measure(Case(name=case.name, overrides=case.overrides, steps=asked.steps or case.steps), Path(folder))
            for case in cases
        ]
    tell([asdict(one) for one in measured], asked.json, lambda: show(measured))
    if asked.svg:
        Path(asked.svg).write_text(timeline(before, measured))


if __name__ == "__main__":
    main()
