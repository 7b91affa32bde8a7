"""Checkpoints that survive being killed at any moment.

A checkpoint is written aside, made durable, sealed by a manifest, and becomes one by a single rename:

    step_000010.tmp-4711/ --write, fsync, manifest.json, fsync--> step_000010/

The only record of which checkpoints exist is the set of step folders whose manifest holds. A step folder without a
valid manifest is damage, never a reason to start afresh in silence.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.fingerprint import fingerprint
from workers.records import AlgorithmState

SCHEMA = 1
MANIFEST = "manifest.json"
STATE = "state.json"
COMMITTED = re.compile(r"step_\d{6,}(\.old-[0-9a-f]+)?")
"""A `.old-` folder is a checkpoint that was being replaced: it counts until the new one of its step is in place."""
STAGED = re.compile(r"step_\d{6,}\.tmp-(?P<pid>\d+)")
MAX_DIFFERENCES_SHOWN = 12


class CheckpointError(RuntimeError):
    """A checkpoint cannot be saved, or none can be resumed from: says which, why, and what to do."""


class Damaged(ValueError):
    """A step folder does not hold what its manifest says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointState:
    """What the driver needs to go on exactly where the run was; weights and optimizer lie beside it.

    Example:
        CheckpointState(step=10, next_draw=320, algorithm=AlgorithmState(kl_coef=0.04), metrics_bytes=8192,
                        weights_version=10, seed=0, config={"train.learning_rate": "1e-06"}, data_fingerprint="9f...")
    """

    step: int
    """Steps done."""
    next_draw: int
    """Position in the ledger of draws: the first draw that was not trained on."""
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
                + "\nTo go on with it, restore what it was saved with; to start afresh, choose another run name."
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

    def save(self, step: int, write: Callable[[Path], None], state: CheckpointState) -> Path:
        """Commit what `write` puts into the folder it is given, with `state` beside it; a same step is replaced.

        Returns when it is on disk. Until then the checkpoints before it are untouched, also if this raises.
        """
        if state.step != step:
            raise ValueError(f"the state is of step {state.step}, but step {step} is being saved")
        staged = self.folder / f"step_{step:06d}.tmp-{os.getpid()}"
        try:
            with self._naming_disk_errors(step):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_abandoned()
                staged.mkdir()
            # Outside: what goes wrong in a trainer is the trainer's to name.
            write(staged)
            with self._naming_disk_errors(step):
                (staged / STATE).write_text(state.to_json())
                _seal(staged)
                committed = self._commit(staged, step)
        finally:
            # A failed save must not fill the disk; after the commit there is nothing here.
            shutil.rmtree(staged, ignore_errors=True)
        self._retire(step)
        return committed

    def newest_valid(self) -> SavedCheckpoint | None:
        """The checkpoint to resume from; None if this run never committed one."""
        skipped: list[Skipped] = []
        for path in self._committed():
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
        paths = {_step_of(path): path for path in reversed(self._committed())}
        if step not in paths:
            kept = ", ".join(map(str, sorted(paths))) or "none"
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}; there are: {kept}")
        try:
            state = _verified_state(paths[step])
        except Damaged as damage:
            raise CheckpointError(f"{paths[step]} is damaged: {damage}") from damage
        return SavedCheckpoint(path=paths[step], step=step, state=state, skipped=())

    @contextmanager
    def _naming_disk_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"step {step} could not be saved in {self.folder}: {error}. The checkpoints before it are untouched; "
                "make room or fix the folder's permissions, then resume"
            ) from error

    def _commit(self, staged: Path, step: int) -> Path:
        """The rename that makes it a checkpoint."""
        final = self.folder / f"step_{step:06d}"
        if final.exists():
            final.rename(self.folder / f"{final.name}.old-{uuid.uuid4().hex}")
        staged.rename(final)
        _fsync(self.folder)
        # The run's folder may be as new as its first checkpoint.
        _fsync(self.folder.parent)
        return final

    def _retire(self, saved_step: int) -> None:
        """Remove what the checkpoint just saved, which is valid, makes superfluous. Newer steps are left alone."""
        committed = self._committed()
        names = {path.name for path in committed}
        replaced = [path for path in committed if path.suffix and path.stem in names]
        older = [path for path in committed if path not in replaced and _step_of(path) < saved_step]
        for path in [*replaced, *older[self.keep - 1 :]]:
            # Renamed first: half removed it would look like damage.
            doomed = self.folder / f"{path.stem}.tmp-{os.getpid()}"
            path.rename(doomed)
            shutil.rmtree(doomed)

    def _committed(self) -> list[Path]:
        """Step folders, newest first; of one step, the one in place before one that was being replaced."""
        if not self.folder.is_dir():
            return []
        paths = [path for path in self.folder.iterdir() if COMMITTED.fullmatch(path.name)]
        return sorted(paths, key=lambda path: (-_step_of(path), path.name))

    def _remove_abandoned(self) -> None:
        """Folders that a process was writing or removing when it died, or that this one could not finish."""
        for path in self.folder.iterdir():
            match = STAGED.fullmatch(path.name)
            if match and (int(match["pid"]) == os.getpid() or not _is_alive(int(match["pid"]))):
                shutil.rmtree(path)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and is somebody else's
    return True


def _fsync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(folder: Path) -> None:
    """Make everything in a folder durable and write the manifest that says what it is."""
    inside = sorted(folder.rglob("*"))
    entries = []
    for path in inside:
        _fsync(path)
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            entries.append({"name": name, "size": path.stat().st_size, "sha256": _sha256(path)})
    (folder / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "files": entries}, indent=1))
    _fsync(folder / MANIFEST)
    _fsync(folder)


def _verified_state(folder: Path) -> CheckpointState:
    """The state in a step folder; `Damaged` unless every file is there, of the right size and content."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["schema"] != SCHEMA:
            raise Damaged(f"its manifest is of schema {manifest['schema']}; this version reads {SCHEMA}")
        names = set()
        for entry in manifest["files"]:
            _verify_file(folder / entry["name"], size=entry["size"], sha256=entry["sha256"])
            names.add(entry["name"])
        if STATE not in names:
            raise Damaged(f"its manifest does not list {STATE}")
        return CheckpointState.from_json((folder / STATE).read_text())
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).relative_to(folder)} is missing") from error
    except OSError as error:
        raise Damaged(f"it cannot be read: {error}") from error
    except Damaged:
        raise
    except (ValueError, KeyError, TypeError) as error:
        # The shapes that wrong JSON takes.
        raise Damaged(f"{MANIFEST} or {STATE} is not what was written: {error!r}") from error


def _verify_file(path: Path, *, size: int, sha256: str) -> None:
    found = path.stat().st_size
    if found != size:
        raise Damaged(f"{path.name} has {found} bytes, its manifest says {size}")
    if _sha256(path) != sha256:
        raise Damaged(f"{path.name} has the right size but not the bytes that were saved (sha256 differs)")


def _differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    lines = [
        f"{key}: saved {saved.get(key, 'absent')}, now {now.get(key, 'absent')}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    more = len(lines) - MAX_DIFFERENCES_SHOWN
    return lines if more <= 0 else [*lines[:MAX_DIFFERENCES_SHOWN], f"and {more} more"]
