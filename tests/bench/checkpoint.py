"""What a checkpoint costs a run, beside plain `torch.save`, and what each survives.

    python -m tests.bench.checkpoint                            # about 2 minutes, 4 GB of disk
    python -m tests.bench.checkpoint --json checkpoint.json
    python -m tests.bench.checkpoint --sizes 64 --repeats 3 --folder runs

`plain` is `torch.save` and one fsync. A whole save of ours holds the trainers up while they write, hash and fsync
(`stall`: a run waits for as much of it as is left when the next step's responses are there); manifest and rename go on
beside it. `slowed`: how much slower matrix products on one thread are then.
The two take turns on a disk that has settled, the newest of each is kept, figures are medians of ratios.

Then both are killed before and within every change of the disk that a save makes, and their power is cut after each
(`tests/power_loss.py`). The plain way is the common one: files in their place, a tracker file that names the newest
step, the old step removed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from engine.checkpoint import CheckpointError, Checkpoints, CheckpointState
from engine.checkpoint_writer import Begin, CheckpointWriter, Finish
from engine.origin import git_version
from tests.bench._output import tell
from tests.disk_changes import Change, Fault, Perform, changes_of, failing, in_a_child, told
from tests.power_loss import Disk, write
from workers.checkpoint_file import save_hashed
from workers.records import AlgorithmState

SEED = 0
FILES = ("model.pt", "optimizer.pt")
CHANCES = 20
"""Trees that a power loss may leave, drawn after each change, beside the three that are no chance."""
State = dict[str, torch.Tensor]


def progress_of(step: int) -> CheckpointState:
    return CheckpointState(
        step=step, next_draw=32 * step, lessons_taken=0, algorithm=AlgorithmState(kl_coef=0.1),
        metrics_bytes=1000 * step, weights_version=step, seed=SEED, config={}, data_fingerprint="",
    )  # fmt: skip


# ----------------------------------------------------------------------------- time


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Of one size; medians over the repeats."""

    megabytes: int
    plain_s: float
    whole_s: float
    """Ours, until it is committed."""
    stall_s: float
    """Ours, until the trainers go on."""
    whole_to_plain: float
    stall_to_plain: float
    hidden: float
    """Share of the whole save that the trainers do not wait for."""
    slowed: float
    """Share of their speed that matrix products lose while a checkpoint is committed."""


def time_of(state: State, folder: Path, *, repeats: int) -> Timing:
    writer = CheckpointWriter(Checkpoints(folder=folder / "ours", keep=1), need_bytes=0)
    plain_s, whole_s, stall_s, slowed = [], [], [], []
    # The first of each warms up.
    for step in range(repeats + 1):
        plain_s.append(save_plainly(state, folder, step))
        os.sync()
        started = time.perf_counter()
        writer.save(step, as_trainers_do(state), progress_of(step))
        stall_s.append(time.perf_counter() - started)
        writer.settle()
        whole_s.append(time.perf_counter() - started)
        writer.committed()
    for step in range(repeats + 1, 2 * repeats + 1):
        writer.save(step, as_trainers_do(state), progress_of(step))
        beside = products_per_s(until=lambda: bool(writer.committed()))
        end = time.perf_counter() + statistics.median(whole_s)
        slowed.append(1.0 - beside / products_per_s(until=lambda end=end: time.perf_counter() > end))
    plain_s, whole_s, stall_s = plain_s[1:], whole_s[1:], stall_s[1:]
    return Timing(
        megabytes=sum(tensor.nbytes for tensor in state.values()) // 10**6,
        plain_s=statistics.median(plain_s),
        whole_s=statistics.median(whole_s),
        stall_s=statistics.median(stall_s),
        whole_to_plain=_median_ratio(whole_s, plain_s),
        stall_to_plain=_median_ratio(stall_s, plain_s),
        hidden=1.0 - _median_ratio(stall_s, whole_s),
        slowed=statistics.median(slowed),
    )


def _median_ratio(these: list[float], those: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(these, those, strict=True))


def as_trainers_do(state: State) -> Begin:
    """As for a run that asks something else of its trainers right away."""

    def begin(staged: Path) -> Finish:
        written = save_hashed(state, staged / "model.pt", within=staged)
        return lambda: [written]

    return begin


def save_plainly(state: State, folder: Path, step: int) -> float:
    """Seconds, without what the removal of the one before takes."""
    path = folder / f"plain_{step}.pt"
    os.sync()
    started = time.perf_counter()
    torch.save(state, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    took_s = time.perf_counter() - started
    for other in folder.glob("plain_*.pt"):
        if other != path:
            other.unlink()
    return took_s


def products_per_s(*, until: Callable[[], bool]) -> float:
    matrix, count, started = torch.ones(256, 256), 0, time.perf_counter()
    while not until():
        matrix @ matrix
        count += 1
    return count / (time.perf_counter() - started)


# ----------------------------------------------------------------------------- what is lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A way to save and to find again."""

    name: str
    save: Callable[[Path, int], object]
    found: Callable[[Path], int | None]
    """The step whose states are read back, each number as it was; None if nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPoints:
    """Of a save over one that was whole: changes of the disk, and how many of them lose both."""

    protocol: str
    changes: int
    lost_when_killed: int
    """Before the change, or in the middle of a write."""
    lost_when_power_fails: int
    """After the change, in one of the ways that were tried."""


def small_state(step: int) -> State:
    return {"weights": torch.full((5000,), float(step))}


def write_states(folder: Path, step: int) -> None:
    for name in FILES:
        with (folder / name).open("wb") as file:
            torch.save(small_state(step), file)


def holds(folder: Path, step: int) -> bool:
    return all(torch.equal(torch.load(folder / name)["weights"], small_state(step)["weights"]) for name in FILES)


def track(folder: Path, step: int) -> None:
    path = folder / f"step_{step}"
    path.mkdir(parents=True)
    write_states(path, step)
    (folder / "latest").write_text(path.name)
    for other in folder.glob("step_*"):
        if other != path:
            shutil.rmtree(other)


def found_by_tracker(folder: Path) -> int | None:
    try:
        name = (folder / "latest").read_text()
        step = int(name.removeprefix("step_"))
        return step if holds(folder / name, step) else None
    except Exception:  # whatever torch makes of bytes that are no file of its own
        return None


def commit(folder: Path, step: int) -> None:
    def begin(staged: Path) -> Finish:
        write_states(staged, step)
        return tuple  # none of them hashed

    with CheckpointWriter(Checkpoints(folder=folder, keep=1), need_bytes=0) as writer:
        writer.save(step, begin, progress_of(step))


def found_by_manifest(folder: Path) -> int | None:
    try:
        found = Checkpoints(folder=folder, keep=1).newest_valid()
    except CheckpointError:
        return None
    return found.step if found is not None and holds(found.path, found.step) else None


PROTOCOLS = (
    Protocol(name="torch.save, tracker file", save=track, found=found_by_tracker),
    Protocol(name="ours", save=commit, found=found_by_manifest),
)


def crash_points(protocol: Protocol, scratch: Path) -> CrashPoints:
    before = scratch / "before"
    protocol.save(before, 10)
    with a_copy(before) as folder:
        changes = changes_of(lambda: protocol.save(folder, 20))
    killed = sum(
        any(loses_all_when_killed(protocol, before, number, fault) for fault in (Fault.CRASH, Fault.TORN))
        for number in range(1, len(changes) + 1)
    )
    return CrashPoints(
        protocol=protocol.name,
        changes=len(changes),
        lost_when_killed=killed,
        lost_when_power_fails=losses_of_power(protocol, before),
    )


@contextmanager
def a_copy(folder: Path) -> Iterator[Path]:
    copy = shutil.copytree(folder, folder.with_name("copy"))
    yield copy
    shutil.rmtree(copy)


def loses_all_when_killed(protocol: Protocol, before: Path, number: int, fault: Fault) -> bool:
    with a_copy(before) as folder:

        def die() -> int:
            with told(failing(number, fault)):
                protocol.save(folder, 20)
            return 0

        in_a_child(die)
        return protocol.found(folder) is None


def losses_of_power(protocol: Protocol, before: Path) -> int:
    """After how many changes a power loss may lose both."""
    chance, after_each = random.Random(SEED), []
    with a_copy(before) as folder:
        disk = Disk(folder)

        def on_change(change: Change, perform: Perform) -> object:
            done = perform(change.data)
            disk.make(change)
            after_each.append(list(disk.after_power_loss(chance, draws=CHANCES)))
            return done

        with told(on_change):
            protocol.save(folder, 20)

    def is_lost(tree: dict) -> bool:
        left = write(tree, before.with_name("left"))
        found = protocol.found(left)
        shutil.rmtree(left)
        return found is None

    return sum(any(map(is_lost, trees)) for trees in after_each)


# ----------------------------------------------------------------------------- told


def show(timings: list[Timing], points: list[CrashPoints]) -> None:
    table = Table(title="a save", title_justify="left")
    for heading in ("", "plain", "ours: whole", "stall", "whole / plain", "stall / plain", "hidden", "slowed"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in timings:
        table.add_row(
            f"{one.megabytes:,} MB", f"{one.plain_s:.2f} s", f"{one.whole_s:.2f} s", f"{one.stall_s:.2f} s",
            f"{one.whole_to_plain:.2f}", f"{one.stall_to_plain:.2f}", f"{one.hidden:.0%}", f"{one.slowed:.0%}",
        )  # fmt: skip
    Console(width=120).print(table)
    table = Table(title="changes of the disk that lose everything", title_justify="left")
    for heading in ("", "of", "killed there", "power cut there"):
        table.add_column(heading, justify="right" if heading else "left")
    for two in points:
        table.add_row(two.protocol, f"{two.changes}", f"{two.lost_when_killed}", f"{two.lost_when_power_fails}")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024], metavar="MB", help="of the states")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the one for temporary files)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    timings, points = [], []
    for megabytes in asked.sizes:
        print(f"{megabytes} MB ...", file=sys.stderr)
        state = {f"{part}": torch.rand(megabytes * 10**6 // 16) for part in range(4)}
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            timings.append(time_of(state, Path(folder), repeats=asked.repeats))
    for protocol in PROTOCOLS:
        print(f"{protocol.name}: crash points ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            points.append(crash_points(protocol, Path(folder)))
    origin = {
        "command": " ".join(["python -m tests.bench.checkpoint", *sys.argv[1:]]), "git": git_version(), "seed": SEED,
        "repeats": asked.repeats,
    }  # fmt: skip
    measured = origin | {"timings": [asdict(one) for one in timings], "crash_points": [asdict(one) for one in points]}
    tell(measured, asked.json, lambda: show(timings, points))


if __name__ == "__main__":
    main()
