"""Checkpoints under a disk that fails and processes that are killed: at every change of the disk, in every way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_checkpoint import names, save, state_of, weights_of

from engine.checkpoint import MANIFEST, CheckpointError, Checkpoints
from engine.checkpoint_room import DiskFull
from engine.checkpoint_writer import CheckpointWriter
from tests.disk_changes import CRASHED, ERRNO, Fault, changes_of, failing, in_a_child, told

SAVED, NAMED, FULL = 0, 3, 4
"""How a child ended that did not crash: it raised CheckpointError, or DiskFull."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A folder with checkpoints, and a save."""

    name: str
    before: tuple[int, ...]
    step: int
    keep: int = 1
    best: frozenset[int] = frozenset()
    damaged: tuple[int, ...] = ()
    """Of those before: their manifests are gone."""
    has_leftovers: bool = False
    """Of processes that were killed while they saved, while they replaced, and while they removed."""

    def checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(folder=folder, keep=self.keep)

    def set_up(self, folder: Path) -> None:
        folder.mkdir()
        for step in self.before:
            save(Checkpoints(folder=folder, keep=9), step, "old")
        if self.has_leftovers:
            newest = folder / f"step_{self.before[-1]:06d}"
            shutil.copytree(newest, folder / f"{newest.name}.old-0a1b")
            shutil.copytree(newest, folder / f"step_000015.tmp-{_dead_pid()}")
            (folder / f"step_000005.tmp-{_dead_pid()}").mkdir()
        for step in self.damaged:
            (folder / f"step_{step:06d}" / MANIFEST).unlink()

    def save(self, folder: Path) -> int:
        try:
            with CheckpointWriter(self.checkpoints(folder), need_bytes=0) as writer:
                writer.save(self.step, weights_of(self.step, "new"), state_of(self.step), best=self.best)
        except DiskFull:
            return FULL
        except CheckpointError:
            return NAMED
        return SAVED

    @property
    def whole_before(self) -> list[int]:
        return [step for step in self.before if step not in self.damaged]

    @property
    def before_it(self) -> tuple[int, str] | None:
        """What is found as long as the new one is not."""
        return (self.whole_before[-1], "old") if self.whole_before else None


def _dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


SCENES = (
    Scene(name="the first", before=(), step=20),
    Scene(name="the next", before=(10,), step=20),
    Scene(name="the same step again", before=(10,), step=10),
    Scene(name="the next of two kept", before=(10, 20), step=30, keep=2),
    Scene(name="the next beside the best", before=(10, 20), step=30, best=frozenset({10})),
    Scene(name="after crashes", before=(10,), step=20, has_leftovers=True),
    Scene(name="after damage", before=(10, 20), step=30, keep=2, damaged=(20,)),
)
MORE_SCENES = (
    Scene(name="the first of three kept", before=(), step=20, keep=3),
    Scene(name="the next of three kept", before=(10, 20, 30), step=40, keep=3),
    Scene(name="one instead of three", before=(10, 20, 30), step=40),
    Scene(name="the same of two again", before=(10, 20), step=20, keep=2),
    Scene(name="the best again", before=(10, 20), step=20, best=frozenset({10, 20}), has_leftovers=True),
    Scene(name="nothing but damage", before=(10, 20), step=30, damaged=(10, 20)),
)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be: a killed process leaves the same files there, and thousands of fsyncs are free."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        yield Path(folder)


def found_in(checkpoints: Checkpoints) -> tuple[int, str] | None:
    """Step and note of the one that a run would go on from."""
    try:
        found = checkpoints.newest_valid()
    except CheckpointError:  # nothing but damage
        return None
    return None if found is None else (found.step, (found.path / "note.txt").read_text())


def assert_all_valid(scene: Scene, folder: Path, copy: Path) -> None:
    """Every step folder is, but for those of the scene that are not: in a copy, newest first, each taken away to see
    the next."""
    checkpoints = Checkpoints(folder=shutil.copytree(folder, copy), keep=1)
    for step in scene.damaged:
        shutil.rmtree(copy / f"step_{step:06d}", ignore_errors=True)
    while (found := checkpoints.newest_valid()) is not None:
        assert found.skipped == ()
        shutil.rmtree(found.path)
    shutil.rmtree(copy)


def assert_named(scene: Scene, fault: Fault, code: int, folder: Path, now: tuple[int, str] | None) -> None:
    """How a save ended that met an error; it had replaced nothing, or said so."""
    is_saved = now == (scene.step, "new")
    if fault in (Fault.ENOSPC, Fault.FULL_DISK):
        assert code == FULL or (code == NAMED and is_saved)
    else:
        assert code == NAMED
    if not is_saved and fault is not Fault.BROKEN_DISK:
        assert not any(name.startswith(f"step_{scene.step:06d}.tmp") for name in names(folder))


def assert_next_save_tidies(scene: Scene, folder: Path) -> None:
    save(scene.checkpoints(folder), 90, "next")
    assert found_in(scene.checkpoints(folder)) == (90, "next")
    assert not any(".tmp-" in name for name in names(folder))
    # What was being replaced stays where the new one never came.
    assert not any(name.partition(".old-")[0] in names(folder) for name in names(folder) if ".old-" in name)
    assert len(names(folder)) <= scene.keep + len(scene.damaged)
    assert "step_000090" in names(folder)


def befall(scene: Scene, fault: Fault, scratch: Path) -> int:
    """Lets the fault befall each change of the scene's save. How many changes there are."""
    template = scratch / "template"
    scene.set_up(template)
    assert found_in(scene.checkpoints(template)) == scene.before_it
    whole = shutil.copytree(template, scratch / "whole")
    changes = changes_of(lambda: scene.save(whole))
    outcomes = {found_in(scene.checkpoints(whole))}
    for number, change in enumerate(changes, start=1):
        if fault is Fault.TORN and not change.data:
            continue
        folder = shutil.copytree(template, scratch / f"trial_{number}")

        def try_to_save(folder: Path = folder, number: int = number) -> int:
            with told(failing(number, fault)):
                return scene.save(folder)

        # Who lives through it can be this process, which is faster.
        code = try_to_save() if fault in ERRNO else in_a_child(try_to_save)
        now = found_in(scene.checkpoints(folder))
        outcomes.add(now)
        assert now in (scene.before_it, (scene.step, "new"))
        assert now is not None or scene.before_it is None, "there was a checkpoint, and there is none"
        assert_all_valid(scene, folder, scratch / "copy")
        if fault not in ERRNO:
            assert code == CRASHED
        elif code == SAVED:
            # A folder that is there already need not be made.
            assert (change.verb, change.path) == ("mkdir", whole) and now == (scene.step, "new")
        else:
            assert_named(scene, fault, code, folder, now)
        assert_next_save_tidies(scene, folder)
        shutil.rmtree(folder)
    assert fault is Fault.TORN or outcomes == {scene.before_it, (scene.step, "new")}
    return len(changes)


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_whatever_befalls_a_save_a_valid_checkpoint_is_found(scene: Scene, fault: Fault, scratch: Path) -> None:
    assert befall(scene, fault, scratch) > 20


@pytest.mark.slow
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
@pytest.mark.parametrize("scene", MORE_SCENES, ids=lambda scene: scene.name)
def test_whatever_befalls_other_saves_a_valid_checkpoint_is_found(scene: Scene, fault: Fault, scratch: Path) -> None:
    assert befall(scene, fault, scratch) > 20


def test_every_way_to_change_the_disk_is_befallen(scratch: Path) -> None:
    """What Python itself reports of a save (PEP 578) is what `told` saw, so that no change was left out."""

    def both() -> int:
        seen: list[tuple[str, str]] = []

        def audit(event: str, args: tuple[object, ...]) -> None:
            if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                seen.append(("open", os.path.basename(os.fspath(args[0]))))
            elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"):
                seen.append((event.removeprefix("os."), os.path.basename(os.fspath(args[0]))))

        sys.addaudithook(audit)
        changes = changes_of(lambda: save(Checkpoints(folder=scratch / "run", keep=1), 20))
        as_python_says = {"unlink": "remove", "replace": "rename"}
        listed = [
            (as_python_says.get(change.verb, change.verb), change.path.name)
            for change in changes
            if change.verb not in ("write", "fsync")
        ]
        assert seen == listed and len(seen) > 10
        return SAVED

    save(Checkpoints(folder=scratch / "run", keep=1), 10)
    assert in_a_child(both) == SAVED


KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests/engine")
from test_checkpoint import at_once, state_of
from engine.checkpoint import Checkpoints
from engine.checkpoint_writer import CheckpointWriter

def write(folder):
    (folder / "weights.bin").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

CheckpointWriter(Checkpoints(folder=Path(sys.argv[1]), keep=1), need_bytes=0).save(20, at_once(write), state_of(20))
"""


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=1)
    save(checkpoints, 10, "old")
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"

        save(checkpoints, 10, "beside it")
        assert any(".tmp-" in name for name in names(tmp_path)), "a living process's folder was removed"

        process.send_signal(signal.SIGKILL)
    found = checkpoints.newest_valid()
    assert found is not None and found.step == 10 and found.skipped == ()
    save(checkpoints, 20)
    assert names(tmp_path) == ["step_000020"]
