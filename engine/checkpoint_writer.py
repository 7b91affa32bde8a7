"""Checkpoints, saved: beside the run, whole or not at all, whenever the process is killed or the power fails.

A checkpoint is written aside, made durable, sealed by a manifest, and becomes one by a single rename:

    step_000010.tmp-4711/ --begin--> --finish, state.json, fsync, manifest.json, fsync, rename--> step_000010/
                          staging         committing, on a thread of its own

Only staging holds the run up. A trainer that has begun answers nobody until it has written what it holds, so what is
written does not change; meanwhile engines with devices of their own decode the next step's responses. Older checkpoints
are removed when the new one is in place, and never before.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from engine.checkpoint import (
    MANIFEST,
    STATE,
    CheckpointError,
    Checkpoints,
    CheckpointState,
    Damaged,
    looks_whole,
    manifest_of,
    read_manifest,
    step_of,
)
from engine.checkpoint_room import DiskFull, free_bytes, is_for_lack_of_room, why_no_room
from workers.crash_points import crash_point
from workers.file_entry import FileEntry

STAGED = re.compile(r"step_\d{6,}\.tmp-(?P<pid>\d+)")
Finish = Callable[[], Sequence[FileEntry]]
"""Waits until everything is written, on a thread beside the run; returns the files that were hashed as they were
written. The others are read for the manifest."""
Begin = Callable[[Path], Finish]
"""Begins to write into the folder that it is given. Both raise what went wrong."""


class CheckpointWriter:
    """Saves a run's checkpoints, one at a time. A folder has one writer.

    Leaving it as a context waits for the commit under way. A commit that failed is told there, too: as a note on the
    error that the block is left by, where there is one.
    """

    def __init__(self, checkpoints: Checkpoints, *, need_bytes: int) -> None:
        """`need_bytes`: of a checkpoint, as long as there is none to tell; 0 where nobody knows."""
        self._folder = checkpoints.folder
        self._checkpoints = checkpoints
        self._need_bytes = need_bytes
        self._under_way: Future[None] | None = None
        self._untold: deque[Path] = deque()

    def save(
        self,
        step: int,
        begin: Begin,
        state: CheckpointState,
        *,
        best: frozenset[int] = frozenset(),
    ) -> None:
        """Have `begin` put the trainers' part into the folder it is given; commit that with `state` in the background.

        Settles the save before. A same step is replaced. `best`: steps whose checkpoints stay beside the newest `keep`.
        Raises DiskFull, CheckpointError where the disk or the save before failed, or what `begin` raises: nothing was
        saved then, and the checkpoints before are untouched. What fails later is raised by the next call.
        """
        if state.step != step:
            raise ValueError(f"the state is of step {state.step}, but step {step} is being saved")
        text = state.to_json()
        self.settle()
        staged = self._folder / f"step_{step:06d}.tmp-{os.getpid()}"
        with self._whole_or_nothing(staged, step) as need:
            self._folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self._folder)
            self._see_to_room(step, need, best)
            staged.mkdir()
            finish = begin(staged)
        self._under_way = _beside(lambda: self._commit(staged, step, finish, text, best))

    def committed(self) -> list[Path]:
        """What was committed since this was last asked. Never waits. Raises the error of a commit that failed, once."""
        if self._under_way is not None and self._under_way.done():
            self.settle()
        told: list[Path] = []
        while self._untold:
            told.append(self._untold.popleft())
        return told

    def settle(self) -> None:
        """Wait for the commit under way, if any. Raises its error, once."""
        if self._under_way is None:
            return
        # Apart from asking for the result: whoever is interrupted here can still settle later.
        wait([self._under_way])
        ended, self._under_way = self._under_way, None
        ended.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.settle()
        except Exception as failed:  # whatever a trainer raised, too; noted, or raised again
            if error is None:
                raise
            error.add_note(str(failed).partition("\n")[0])

    def _commit(self, staged: Path, step: int, finish: Finish, state: str, best: frozenset[int]) -> None:
        with self._whole_or_nothing(staged, step):
            written = finish()
            crash_point("driver/commit/seal")
            (staged / STATE).write_text(state)
            _seal(staged, written)
            crash_point("driver/commit/rename")
            committed = self._put_in_place(staged, step)
        self._untold.append(committed)
        crash_point("driver/commit/retire")
        try:
            self._retire(step, best)
        except OSError as error:
            raise CheckpointError(
                f"step {step} is saved in {self._folder}, but older checkpoints could not be removed: {error}. "
                "Fix the folder's permissions or remove them by hand, then resume"
            ) from error

    def _put_in_place(self, staged: Path, step: int) -> Path:
        """The rename that makes it a checkpoint."""
        final = self._folder / f"step_{step:06d}"
        if final.exists():
            final.rename(self._folder / f"{final.name}.old-{uuid.uuid4().hex}")
        staged.rename(final)
        _fsync_names(self._folder)
        return final

    def _retire(self, saved_step: int, best: frozenset[int]) -> None:
        """Remove what the checkpoint just saved, which is valid, makes superfluous. Newer steps are left alone.

        A damaged one, as far as that is cheap to see, takes nobody's place among the newest `keep`. It stays until
        there are so many newer ones, for a person to look at.
        """
        whole: list[int] = []
        for path in self._checkpoints.folders():
            step = step_of(path)
            if step > saved_step:
                continue
            is_wanted = len(whole) < self._checkpoints.keep or step in best
            if is_wanted and step not in whole:
                whole += [step] if looks_whole(path) else []
            else:
                # Renamed first, for good: half removed it would look like damage.
                doomed = self._folder / f"{path.stem}.tmp-{os.getpid()}"
                path.rename(doomed)
                _fsync(self._folder)
                shutil.rmtree(doomed)

    def _need(self) -> int:
        """Bytes of a checkpoint, by the newest one."""
        for path in self._checkpoints.folders():
            try:
                return sum(entry.size for entry in read_manifest(path))
            except Damaged:
                continue
        return self._need_bytes

    def _see_to_room(self, step: int, need: int, best: frozenset[int]) -> None:
        if free_bytes(self._folder) >= need:
            return
        # A process that was killed may have left more than are kept.
        with suppress(CheckpointError):  # nothing but damage
            newest = self._checkpoints.newest_valid()
            if newest is not None:
                self._retire(newest.step, best)
        have = free_bytes(self._folder)
        if have < need:
            raise self._disk_full(step, need=need, have=have)

    @contextmanager
    def _whole_or_nothing(self, staged: Path, step: int) -> Iterator[int]:
        """What fails in the block leaves nothing behind, and is named where the disk is to blame. Gives what is needed
        to save, in bytes."""
        need = self._need_bytes
        try:
            need = self._need()
            yield need
        except BaseException as error:
            left = free_bytes(self._folder)
            shutil.rmtree(staged, ignore_errors=True)
            have = free_bytes(self._folder)
            if isinstance(error, Exception) and is_for_lack_of_room(error, need=need, left=left, have=have):
                raise self._disk_full(step, need=max(need, have - left), have=have, error=error) from error
            if isinstance(error, OSError):
                raise CheckpointError(
                    f"step {step} could not be saved in {self._folder}: {error}. The checkpoints before it are "
                    "untouched; fix the folder or its disk, then resume"
                ) from error
            # What goes wrong in a trainer is the trainer's to name.
            raise

    def _disk_full(self, step: int, *, need: int, have: int, error: Exception | None = None) -> DiskFull:
        why = why_no_room(need=need, have=have, error=error)
        lower = ", or lower run.keep_checkpoints" if self._checkpoints.keep > 1 else ""
        message = f"step {step} could not be saved in {self._folder}: {why}; make room{lower}"
        return DiskFull(message, need=need, have=have)


def _beside(work: Callable[[], None]) -> Future[None]:
    """Run it on a thread, which does not keep a process alive that is told to end."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to whoever asks how it went, in another thread
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _remove_abandoned(folder: Path) -> None:
    """Folders that a process was writing or removing when it died, or that this one could not finish."""
    for path in folder.iterdir():
        match = STAGED.fullmatch(path.name)
        if match and (int(match["pid"]) == os.getpid() or not _is_alive(int(match["pid"]))):
            shutil.rmtree(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and is somebody else's
    return True


def _seal(folder: Path, written: Sequence[FileEntry]) -> None:
    """Make everything in a folder durable and write the manifest that says what it is: of files in `written`, what
    their writers say."""
    inside = sorted(folder.rglob("*"))
    for path in inside:
        _fsync(path)
    for entry in written:
        if (size := (folder / entry.name).stat().st_size) != entry.size:
            raise OSError(f"{entry.name} has {size} bytes, {entry.size} were written")
    names = {entry.name for entry in written}
    files = [path for path in inside if path.is_file() and path.relative_to(folder).as_posix() not in names]
    entries = [*written, *(FileEntry.of(path, within=folder) for path in files)]
    (folder / MANIFEST).write_text(manifest_of(entries))
    _fsync(folder / MANIFEST)
    _fsync(folder)


def _fsync_names(folder: Path) -> None:
    """Make durable what the folder lists, and its own name: any folder above may be as new as the run's first
    checkpoint."""
    _fsync(folder)
    device = folder.stat().st_dev
    for above in folder.absolute().parents:
        if above.stat().st_dev != device or not os.access(above, os.R_OK):
            return
        _fsync(above)


def _fsync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
