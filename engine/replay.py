"""One step of a run done again, from the rollouts that it kept, and put beside what the run recorded of it.

    python -m engine.replay runs/one/rollouts/step_000010.jsonl
    python -m engine.replay runs/one/rollouts/step_000010.jsonl algo=gspo                   # by another algorithm
    python -m engine.replay runs/one/rollouts/step_000010.jsonl train.learning_rate=1e-5    # under another setting

Starts from the newest checkpoint before the step and does the steps in between again from their rollouts, which must
all be there (run.keep_rollouts_every_steps=1). No engine samples and nobody judges. Settings of algo, train and critic
hold for that step alone; those of cluster say where it is done. Nothing but logs is written, to runs/one/replay.

Exit code 0: the same figures and weights as recorded, bit for bit; or other settings, or nothing was recorded of a step
in which the run stopped. 1: others, or the step cannot be done. 2: a mistake. 130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from engine.checkpoint import CheckpointError
from engine.config import ConfigError
from engine.group_files import NotGroups
from engine.replay_plan import Plan, plan_replay
from workers.bytecode import keep_bytecode
from workers.stopped import RunStopped

if TYPE_CHECKING:
    from engine.redo import Redone

MISTAKES = (ConfigError, CheckpointError, NotGroups)
CHECKSUM = "weights_checksum"
MOST_NAMED = 5
WIDTH = 100
"""Columns where there is no terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One of a step, as it was recorded and as it came out again."""

    name: str
    recorded: float | str | None
    """None where the run did not have it."""
    replayed: float | str

    @property
    def is_same(self) -> bool:
        both_nan = self.recorded != self.recorded and self.replayed != self.replayed
        return both_nan or self.recorded == self.replayed

    def cells(self) -> tuple[str, str, str, str]:
        """For people: name, both values, and by how much they differ."""
        return self.name, _shown(self.recorded), _shown(self.replayed), self._difference()

    def _difference(self) -> str:
        if self.is_same:
            return "0"
        if isinstance(self.recorded, (int, float)) and isinstance(self.replayed, (int, float)):
            return f"{self.replayed - self.recorded:+.2e}"
        return "other" if self.recorded is not None else "-"


def figures(recorded: Mapping[str, float | str], redone: Redone) -> tuple[Figure, ...]:
    """Those that the step has come to again, in the order of the record."""
    replayed = {**redone.metrics, CHECKSUM: redone.weights_checksum}
    names = dict.fromkeys([*(name for name in recorded if name in replayed), *replayed])
    return tuple(Figure(name=name, recorded=recorded.get(name), replayed=replayed[name]) for name in names)


def recorded_of(run_folder: Path, step: int) -> Mapping[str, float | str]:
    """What metrics.jsonl says of a step (from 1); empty where it says nothing."""
    path = run_folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return next((row for row in rows if row["step"] == step and "time/step_s" in row), {})


def table(of: Sequence[Figure]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, show_edge=False, padding=(0, 3, 0, 0))
    shown.add_column("metric", no_wrap=True)
    for heading in ("recorded", "replayed", "difference"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for figure in of:
        shown.add_row(*figure.cells())
    return shown


def verdict(plan: Plan, recorded: Mapping[str, float | str], of: Sequence[Figure]) -> tuple[str, int]:
    """The last line, and the exit code."""
    differing = [figure.name for figure in of if not figure.is_same]
    if not recorded:
        return f"metrics.jsonl has no step {plan.step}, in which the run stopped: nothing to compare with", 0
    if plan.changes:
        return f"recorded: the step as the run did it; replayed: under {' '.join(plan.changes)}", 0
    if not differing:
        return "the replay is the step, bit for bit", 0
    named = ", ".join(differing[:MOST_NAMED]) + (", ..." if differing[MOST_NAMED:] else "")
    return f"the replay differs from the step in {len(differing)} of {len(of)} figures: {named}", 1


def _shown(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value[:12] if isinstance(value, str) else f"{value:.6g}"


def run(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dump", type=Path, metavar="ROLLOUTS", help="of a step, in the folder of their run")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="for the step, as they are typed for a run")
    asked = parser.parse_args(argv)
    keep_bytecode()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH

    def say(text: str) -> None:
        console.print(text, style="dim", markup=False, soft_wrap=True)

    try:
        plan = plan_replay(asked.dump, asked.settings)
        for remark in plan.remarks:
            say(remark)
        say(f"step {plan.step} of {plan.run_folder}, from {_told(plan)}")
        # Ray and torch take seconds to import: every mistake above is answered before.
        from engine.redo import redo

        redone = redo(plan, say)
    except MISTAKES as mistake:
        print(f"heliostat: {mistake}", file=sys.stderr)
        return 2
    except RunStopped as stopped:
        told = "\n".join([str(stopped), *getattr(stopped, "__notes__", ())])
        print(f"heliostat: the replay stopped: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    recorded = recorded_of(plan.run_folder, plan.step)
    compared = figures(recorded, redone)
    last_line, exit_code = verdict(plan, recorded, compared)
    console.print(table(compared))
    console.print(last_line, markup=False, soft_wrap=True)
    return exit_code


def _told(plan: Plan) -> str:
    after = plan.start.step
    return f"the checkpoint of step {after}" if plan.start.folder is not None else "the beginning of the run"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # workers are buried as on Ctrl-C
    sys.exit(run(sys.argv[1:]))
