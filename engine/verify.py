"""Are two runs the same run? Config, data, ledger, weights, metrics, rollouts; and where they first differ.

    python -m engine.verify runs/one runs/other
    python -m engine.verify runs/one runs/other --tolerance 1e-6     # of metrics, relative

Reads what the runs left in their folders, and starts nothing. Exit code 0: equal in all that both of them recorded;
1: they differ; 2: a folder is no run's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint import STATE, CheckpointState

OF_THIS_MACHINE = ("time/", "memory/", "alarms/memory", "replaced_workers", "tokens_per_s", "reward/judging_s")
"""Metrics that no two runs share."""
MOST_TOLD = 5
Row = Mapping[str, float | str]


class NoRun(ValueError):
    """A folder does not hold what a run leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One place in which two runs are not the same."""

    where: str
    one: object
    other: object

    def __str__(self) -> str:
        return f"{self.where}: {self.one} and {self.other}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One aspect of both runs."""

    aspect: str
    compared: int
    """Places that both have: 0 says that nothing is known."""
    differences: tuple[Difference, ...]
    """In the order of the run: the first one is where they part."""

    def told(self) -> str:
        if not self.differences:
            return f"{self.aspect:9}equal in {self.compared}" if self.compared else f"{self.aspect:9}nothing to compare"
        first, *others = self.differences
        more = f", and in {len(others)} more" if others else ""
        return f"{self.aspect:9}first differ at {first}{more}"


def verify(one: Path, other: Path, *, tolerance: float) -> tuple[Compared, ...]:
    """Raises NoRun."""
    for folder in (one, other):
        if not (folder / "metrics.jsonl").exists():
            raise NoRun(f"{folder} is no run's folder: there is no metrics.jsonl")
    rows, others = _rows(one), _rows(other)
    states, other_states = _states(one), _states(other)
    return (
        _by_key("config", _settings(states), _settings(other_states)),
        _by_key("data", *(_of_states(own, _data) for own in (states, other_states)), both=True),
        _by_key("ledger", *(_of_states(own, _next_draw) for own in (states, other_states)), both=True),
        _by_key("rollouts", _rollouts(one), _rollouts(other), both=True),
        _by_key("weights", _labels(rows) | _exported(one), _labels(others) | _exported(other), both=True),
        _metrics(rows, others, tolerance=tolerance),
    )


def _by_key(aspect: str, one: Mapping[str, object], other: Mapping[str, object], *, both: bool = False) -> Compared:
    """In the order of the keys. `both`: what only one of them recorded is no difference."""
    keys = [key for key in one if key in other]
    if not both:
        keys += sorted(one.keys() ^ other.keys())
    return Compared(
        aspect=aspect,
        compared=len(keys),
        differences=tuple(
            Difference(where=key, one=one.get(key, "absent"), other=other.get(key, "absent"))
            for key in keys
            if one.get(key) != other.get(key)
        ),
    )


def _settings(states: Mapping[int, CheckpointState]) -> Mapping[str, str]:
    """Those that decide what is learned, as the newest checkpoint has them; none without one."""
    return states[max(states)].config if states else {}


def _rows(run: Path) -> list[Row]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _states(run: Path) -> dict[int, CheckpointState]:
    """Of each checkpoint, by step."""
    found = (CheckpointState.from_json(path.read_text()) for path in sorted(run.glob(f"checkpoints/step_*/{STATE}")))
    return {state.step: state for state in found}


def _of_states(states: Mapping[int, CheckpointState], read: Callable[[CheckpointState], object]) -> dict[str, object]:
    return {f"the checkpoint of step {step}": read(state) for step, state in sorted(states.items())}


def _data(state: CheckpointState) -> object:
    return state.data_fingerprint


def _next_draw(state: CheckpointState) -> object:
    return state.next_draw


def _labels(rows: Sequence[Row]) -> dict[str, object]:
    """The weights' checksum after each step."""
    return {f"step {row['step']}": row["weights_checksum"] for row in rows if "weights_checksum" in row}


def _exported(run: Path) -> dict[str, object]:
    return {f"export/{path.name}": _sha256(path) for path in sorted((run / "export").glob("*.safetensors"))}


def _rollouts(run: Path) -> dict[str, object]:
    """Of each step that was kept: tokens, log-probs and versions of every response."""
    return {path.stem.replace("_", " "): _sha256(path) for path in sorted((run / "rollouts").glob("*.safetensors"))}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _metrics(one: Sequence[Row], other: Sequence[Row], *, tolerance: float) -> Compared:
    compared, found = 0, []
    for row, twin in zip(one, other, strict=False):
        for name in _comparable(row, twin):
            compared += 1
            if not _same(row.get(name), twin.get(name), tolerance):
                where = f"step {row.get('step')}, {name}"
                found.append(Difference(where=where, one=row.get(name, "absent"), other=twin.get(name, "absent")))
    if len(one) != len(other):
        found.append(Difference(where="the number of rows in metrics.jsonl", one=len(one), other=len(other)))
    return Compared(aspect="metrics", compared=compared, differences=tuple(found))


def _comparable(row: Row, twin: Row) -> Iterator[str]:
    """The step first: rows of different steps differ in that."""
    names = [name for name in dict.fromkeys(("step", *row, *twin)) if not name.startswith(OF_THIS_MACHINE)]
    yield from (name for name in names if name != "weights_checksum")


def _same(one: float | str | None, other: float | str | None, tolerance: float) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        both_nan = math.isnan(one) and math.isnan(other)
        return one == other or both_nan or math.isclose(one, other, rel_tol=tolerance)
    return one == other


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path, metavar="RUN_A")
    parser.add_argument("other", type=Path, metavar="RUN_B")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative, of metrics (default: 0, bit for bit)")
    asked = parser.parse_args(argv)
    try:
        aspects = verify(asked.one, asked.other, tolerance=asked.tolerance)
    except NoRun as mistake:
        print(f"heliostat: {mistake}", file=sys.stderr)
        return 2
    for aspect in aspects:
        print(aspect.told())
        for difference in aspect.differences[1:MOST_TOLD]:
            print(f"{'':9}{difference}")
    differ = any(aspect.differences for aspect in aspects)
    print("the runs differ" if differ else "the runs are equal")
    return int(differ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
