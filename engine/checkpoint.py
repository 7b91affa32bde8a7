"""Checkpoints, found again: the newest that is whole, and what is wrong with the others.

The only record of which checkpoints exist is the set of step folders whose manifest holds. A step folder without a
valid manifest is damage, never a reason to start afresh in silence. `engine/checkpoint_writer.py` makes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.fingerprint import fingerprint
from workers.file_entry import FileEntry, sha256_of
from workers.records import AlgorithmState

SCHEMA = 2
MANIFEST = "manifest.json"
STATE = "state.json"
COMMITTED = re.compile(r"step_\d{6,}(\.old-[0-9a-f]+)?")
"""A `.old-` folder is a checkpoint that was being replaced: it counts until the new one of its step is in place."""
MAX_DIFFERENCES_SHOWN = 12


class CheckpointError(RuntimeError):
    """A checkpoint cannot be saved, or none can be resumed from: says which, why, and what to do."""


class Damaged(ValueError):
    """A step folder does not hold what its manifest says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointState:
    """What the driver needs to go on exactly where the run was; weights and optimizer lie beside it.

    Example:
        CheckpointState(step=10, next_draw=320, lessons_taken=0, algorithm=AlgorithmState(kl_coef=0.04),
                        metrics_bytes=8192, weights_version=10, seed=0, config={"train.learning_rate": "1e-06"},
                        data_fingerprint="9f...")
    """

    step: int
    """Steps done."""
    next_draw: int
    """Position in the ledger of draws: the first draw that was not trained on."""
    lessons_taken: int
    """Of those that the row at `next_draw` makes."""
    algorithm: AlgorithmState
    metrics_bytes: int
    """Length of metrics.jsonl up to this step; what follows belongs to steps that will be done again."""
    weights_version: int
    seed: int
    config: Mapping[str, str]
    """`flattened` settings that must not change on resume, so that a difference can be shown key by key."""
    data_fingerprint: str

    @property
    def config_fingerprint(self) -> str:
        return fingerprint(self.config)

    def to_json(self) -> str:
        return json.dumps(asdict(replace(self, config=dict(self.config))), indent=1, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> CheckpointState:
        values = json.loads(text)
        return cls(**(values | {"algorithm": AlgorithmState(**values["algorithm"])}))

    def refuse_other_run(self, *, config: Mapping[str, str], data_fingerprint: str) -> None:
        """Raise `CheckpointError` unless settings and data are those that this state was saved under."""
        problems = []
        if fingerprint(config) != self.config_fingerprint:
            problems += _differences(self.config, config)
        if data_fingerprint != self.data_fingerprint:
            problems.append(
                f"data: saved with fingerprint {self.data_fingerprint}, now {data_fingerprint}: the rows or their "
                "order are others, so the position in the data would point at other prompts"
            )
        if problems:
            raise CheckpointError(
                f"the checkpoint of step {self.step} was saved by another run:\n  "
                + "\n  ".join(problems)
                + "\nTo go on with it, restore what it was saved with, or say run.resume=despite_changes; to start "
                "afresh, choose another run name."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A step folder that cannot be resumed from, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint whose every byte is as it was saved."""

    path: Path
    step: int
    state: CheckpointState
    skipped: tuple[Skipped, ...]
    """Newer step folders that are damaged, for a person to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run, newest `keep` kept."""

    folder: Path
    keep: int

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise CheckpointError(f"keep is {self.keep}: a run must keep at least 1 checkpoint to resume from")

    def folders(self) -> list[Path]:
        """Step folders, whole or not, newest first; of one step, the one in place before one that was replaced."""
        if not self.folder.is_dir():
            return []
        paths = [path for path in self.folder.iterdir() if COMMITTED.fullmatch(path.name)]
        return sorted(paths, key=lambda path: (-step_of(path), path.name))

    def newest_valid(self) -> SavedCheckpoint | None:
        """The checkpoint to resume from; None if this run never committed one."""
        skipped: list[Skipped] = []
        for path in self.folders():
            try:
                state = _verified_state(path)
            except Damaged as damage:
                skipped.append(Skipped(path=path, reason=str(damage)))
            else:
                return SavedCheckpoint(path=path, step=state.step, state=state, skipped=tuple(skipped))
        if skipped:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be resumed from:\n  "
                + "\n  ".join(f"{damaged.path.name}: {damaged.reason}" for damaged in skipped)
                + "\nRestore one of these folders from a backup, or start afresh under another run name; "
                "a run does not start over on its own where it once had a checkpoint."
            )
        return None

    def of_step(self, step: int) -> SavedCheckpoint:
        """The one of that step. Raises CheckpointError where there is none, or it is damaged."""
        paths = {step_of(path): path for path in reversed(self.folders())}
        if step not in paths:
            kept = ", ".join(map(str, sorted(paths))) or "none"
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}; there are: {kept}")
        try:
            state = _verified_state(paths[step])
        except Damaged as damage:
            raise CheckpointError(f"{paths[step]} is damaged: {damage}") from damage
        return SavedCheckpoint(path=paths[step], step=step, state=state, skipped=())


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def manifest_of(entries: Sequence[FileEntry]) -> str:
    return json.dumps({"schema": SCHEMA, "files": [asdict(entry) for entry in entries]}, indent=1)


def read_manifest(folder: Path) -> tuple[FileEntry, ...]:
    """What a step folder should hold; `Damaged` where that cannot be told."""
    with _told_as_damage(MANIFEST):
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["schema"] != SCHEMA:
            raise Damaged(f"its manifest is of schema {manifest['schema']}; this version reads {SCHEMA}")
        return tuple(FileEntry(**entry) for entry in manifest["files"])


def looks_whole(folder: Path) -> bool:
    """Whether every file is there, of its size. Cheap: nothing but the manifest is read, so wrong bytes pass."""
    try:
        for entry in read_manifest(folder):
            _verify_size(folder, entry)
    except Damaged:
        return False
    return True


def _verified_state(folder: Path) -> CheckpointState:
    """The state in a step folder; `Damaged` unless every file is there, of the right size and content."""
    entries = read_manifest(folder)
    for entry in entries:
        _verify_size(folder, entry)
        with _told_as_damage(entry.name):
            if sha256_of(folder / entry.name) != entry.sha256:
                raise Damaged(f"{entry.name} has the right size but not the bytes that were saved (sha256 differs)")
    if STATE not in {entry.name for entry in entries}:
        raise Damaged(f"its manifest does not list {STATE}")
    with _told_as_damage(STATE):
        state = CheckpointState.from_json((folder / STATE).read_text())
    if state.step != step_of(folder):
        raise Damaged(f"it holds the state of step {state.step}")
    return state


def _verify_size(folder: Path, entry: FileEntry) -> None:
    with _told_as_damage(entry.name):
        found = (folder / entry.name).stat().st_size
    if found != entry.size:
        raise Damaged(f"{entry.name} has {found} bytes, its manifest says {entry.size}")


@contextmanager
def _told_as_damage(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Damaged(f"{name} is missing") from error
    except OSError as error:
        raise Damaged(f"{name} cannot be read: {error}") from error
    except Damaged:
        raise
    except (ValueError, KeyError, TypeError) as error:
        # The shapes that wrong JSON takes.
        raise Damaged(f"{name} is not what was written: {error!r}") from error


def _differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    lines = [
        f"{key}: saved {saved.get(key, 'absent')}, now {now.get(key, 'absent')}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    more = len(lines) - MAX_DIFFERENCES_SHOWN
    return lines if more <= 0 else [*lines[:MAX_DIFFERENCES_SHOWN], f"and {more} more"]
