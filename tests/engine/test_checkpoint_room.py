"""Checkpoints without room: a full disk is foreseen or named, and costs nothing but the save that did not fit."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_checkpoint import at_once, beside, flip_a_bit, names, save, state_of, weights_of, writer_of

from engine.checkpoint import CheckpointError, Checkpoints
from engine.checkpoint_room import DiskFull, free_bytes
from engine.checkpoint_writer import Begin, CheckpointWriter
from tests.disk_changes import PATIENCE_S, in_a_child
from workers.stopped import WorkerDied

PASSED, NO_NAMESPACES = 0, 50
NEW_MOUNTS, READ_ONLY, REMOUNT, RECURSIVE, PRIVATE = 0x20000, 1, 32, 16384, 1 << 18
"""Linux: CLONE_NEWNS and MS_*."""
PAGE = 4096
LARGE = 100 * PAGE


def on_a_disk_of(pages: int, folder: Path, body: Callable[[Path], None]) -> None:
    """Run `body` in a process whose `folder` is a file system of its own with so many pages of 4 KiB."""

    def child() -> int:
        try:
            mount_anew(folder, pages)
        except PermissionError:
            return NO_NAMESPACES
        body(folder)
        return PASSED

    code = in_a_child(child)
    if code == NO_NAMESPACES:
        pytest.skip("a disk of a size of our own needs root")
    assert code == PASSED


def mount_anew(folder: Path, pages: int) -> None:
    libc_call("unshare", NEW_MOUNTS)
    libc_call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    libc_call("mount", b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={pages * PAGE}".encode())


def remount(folder: Path, flags: int = 0, options: str = "") -> None:
    libc_call("mount", None, bytes(folder), None, REMOUNT | flags, options.encode())


def libc_call(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    typed = [ctypes.c_ulong(arg) if isinstance(arg, int) else arg for arg in args]
    if getattr(libc, name)(*typed) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def large(size: int = LARGE) -> Begin:
    """Weights of so many bytes."""

    def write(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(bytes(size))

    return beside(write)


def save_large(checkpoints: Checkpoints, step: int, size: int = LARGE) -> None:
    with writer_of(checkpoints) as writer:
        writer.save(step, large(size), state_of(step))


def newest(checkpoints: Checkpoints) -> int:
    found = checkpoints.newest_valid()
    assert found is not None and found.skipped == ()
    return found.step


# ----------------------------------------------------------------------------- foreseen


def test_a_first_checkpoint_that_is_known_not_to_fit_is_not_begun(tmp_path: Path) -> None:
    writer = CheckpointWriter(Checkpoints(folder=tmp_path, keep=2), need_bytes=10**18)
    begun: list[Path] = []
    with pytest.raises(DiskFull) as caught:
        writer.save(10, at_once(begun.append), state_of(10))
    assert begun == []
    assert caught.value.need == 10**18
    assert 0 < caught.value.have < 10**18
    for words in (
        "step 10 could not be saved",
        str(tmp_path),
        "needs 1000000000.0 GB and",
        "are free; make room, or lower",
    ):
        assert words in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_full_disk_is_foreseen_by_the_checkpoint_before(tmp_path: Path, keep: int) -> None:
    def body(folder: Path) -> None:
        checkpoints = Checkpoints(folder=folder / "checkpoints", keep=keep)
        steps = range(10, 10 * (keep + 1), 10)
        for step in steps:
            save_large(checkpoints, step)
        before = names(checkpoints.folder)
        with pytest.raises(DiskFull) as caught:
            save_large(checkpoints, 90)
        assert LARGE < caught.value.need < LARGE + 3 * PAGE
        assert caught.value.have == free_bytes(folder) < caught.value.need
        assert "a checkpoint needs 0.5 MB and 0.2 MB are free; make room" in str(caught.value)
        assert ("run.keep_checkpoints" in str(caught.value)) == (keep > 1)
        assert names(checkpoints.folder) == before == [f"step_{step:06d}" for step in steps]
        assert newest(checkpoints) == steps[-1]

        remount(folder, options=f"size={(keep + 2) * LARGE}")
        save_large(checkpoints, 90)
        assert newest(checkpoints) == 90
        assert len(names(checkpoints.folder)) == keep

    on_a_disk_of(100 * keep + 70, tmp_path, body)


def test_what_a_killed_process_left_too_many_makes_room_first(tmp_path: Path) -> None:
    def body(folder: Path) -> None:
        for step in (10, 20):
            save_large(Checkpoints(folder=folder, keep=2), step)
        (folder / f"step_000015.tmp-{os.getpid()}").mkdir()
        large(LARGE // 2)(folder / f"step_000015.tmp-{os.getpid()}")()
        save_large(Checkpoints(folder=folder, keep=1), 30)
        assert names(folder) == ["step_000030"]

    on_a_disk_of(270, tmp_path, body)


def test_no_room_is_made_of_the_last_one_that_is_valid(tmp_path: Path) -> None:
    def body(folder: Path) -> None:
        for step in (10, 20):
            save_large(Checkpoints(folder=folder, keep=2), step)
        flip_a_bit(folder / "step_000020" / "weights.bin")
        checkpoints = Checkpoints(folder=folder, keep=1)
        with pytest.raises(DiskFull):
            save_large(checkpoints, 30)
        found = checkpoints.newest_valid()
        assert found is not None and found.step == 10

        flip_a_bit(folder / "step_000010" / "weights.bin")
        with pytest.raises(DiskFull):
            save_large(checkpoints, 30)
        assert names(folder) == ["step_000010", "step_000020"]

    on_a_disk_of(270, tmp_path, body)


# ----------------------------------------------------------------------------- met


def test_a_disk_that_is_full_anywhere_in_a_save_costs_only_that_save(tmp_path: Path) -> None:
    """Disks from one that holds nothing to one that holds both, page by page; the second is larger than the first."""

    def body(folder: Path) -> None:
        checkpoints, saved = Checkpoints(folder=folder / "checkpoints", keep=2), []
        for step, size in ((10, 15 * PAGE), (20, 25 * PAGE)):
            free = free_bytes(folder)
            try:
                save_large(checkpoints, step, size)
            except DiskFull as full:
                assert full.have <= free
                assert free - free_bytes(folder) <= PAGE, "something was left behind"
            else:
                saved.append(step)
        assert (names(checkpoints.folder) if saved else []) == [f"step_{step:06d}" for step in saved]
        assert not saved or newest(checkpoints) == saved[-1]
        folder.with_suffix(".saved").write_text(f"{saved}")

    for pages in range(1, 60):
        folder = tmp_path / f"{pages}"
        folder.mkdir()
        on_a_disk_of(pages, folder, body)
    saved = [(tmp_path / f"{pages}.saved").read_text() for pages in range(1, 60)]
    assert saved == sorted(saved, key=["[]", "[10]", "[10, 20]"].index) and len(set(saved)) == 3


WRITERS = {
    "torch": lambda path: torch.save({"weights": torch.zeros(LARGE // 4)}, path),
    "safetensors": lambda path: save_file({"weights": torch.zeros(LARGE // 4)}, path),
    "python": lambda path: path.write_bytes(bytes(LARGE)),
}


def meets_a_full_disk(writer: str, folder: Path) -> None:
    """In a process of its own: its exit code says whether all was as it should be."""
    signal.alarm(PATIENCE_S)
    try:
        mount_anew(folder, 90)
    except PermissionError:
        sys.exit(NO_NAMESPACES)
    checkpoints = Checkpoints(folder=folder, keep=1)
    save(checkpoints, 10)
    with pytest.raises(DiskFull):
        writer_of(checkpoints).save(20, at_once(lambda staged: WRITERS[writer](staged / "weights.bin")), state_of(20))
    assert names(folder) == ["step_000010"] and newest(checkpoints) == 10


@pytest.mark.parametrize("writer", WRITERS)
def test_what_writers_say_on_a_full_disk_is_understood(tmp_path: Path, writer: str) -> None:
    # Not forked: torch's writers hang or crash where other tests have left threads behind.
    process = multiprocessing.get_context("spawn").Process(target=meets_a_full_disk, args=(writer, tmp_path))
    process.start()
    process.join()
    if process.exitcode == NO_NAMESPACES:
        pytest.skip("a disk of a size of our own needs root")
    assert process.exitcode == PASSED


def raising(error: Exception, cause: Exception | None = None) -> Begin:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error from cause

    return beside(write)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FULL, None),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), None),
        (RuntimeError("the policy could not be saved"), FULL),
        (RuntimeError("outer"), RuntimeError("inner")),
    ],
)
def test_a_quota_and_an_error_that_was_caused_by_a_full_disk_are_one(
    tmp_path: Path, error: Exception, cause: Exception | None
) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=1)
    save(checkpoints, 10)
    if cause is not None and cause is not FULL:
        cause.__context__ = FULL
    told = r"are free, but writing ended for lack of room \(.*\); make room$"
    with pytest.raises(DiskFull, match=told) as caught, writer_of(checkpoints) as writer:
        writer.save(20, raising(error, cause), state_of(20))
    assert caught.value.__cause__ is error
    assert names(tmp_path) == ["step_000010"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a trainer's own"),
        RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed"),
        RuntimeError("No space left on device (of somebody else)"),
    ],
)
def test_an_error_without_a_number_on_a_disk_with_room_is_its_writers_own(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, writer_of(Checkpoints(folder=tmp_path, keep=1)) as writer:
        writer.save(10, raising(error), state_of(10))
    assert caught.value is error
    assert names(tmp_path) == []


def test_a_worker_that_died_on_a_full_disk_has_died(tmp_path: Path) -> None:
    def body(folder: Path) -> None:
        for error, raised in ((WorkerDied("policy 0 died"), WorkerDied), (ValueError("cut short"), DiskFull)):
            with pytest.raises(raised), writer_of(Checkpoints(folder=folder, keep=1)) as writer:
                writer.save(10, raising(error), state_of(10))

    on_a_disk_of(20, tmp_path, body)


# ----------------------------------------------------------------------------- other trouble with the folder


def test_a_disk_that_became_read_only_is_named_and_costs_nothing(tmp_path: Path) -> None:
    def body(folder: Path) -> None:
        checkpoints = Checkpoints(folder=folder, keep=1)
        save(checkpoints, 10)
        remount(folder, READ_ONLY)
        with pytest.raises(CheckpointError, match=r"step 20 could not be saved in .*Read-only file system"):
            save(checkpoints, 20)
        assert newest(checkpoints) == 10

        def write(staged: Path) -> None:
            weights_of(20, "")(staged)()
            remount(folder, READ_ONLY)

        remount(folder)
        writer = writer_of(checkpoints)
        writer.save(20, beside(write), state_of(20))
        with pytest.raises(CheckpointError, match="Read-only file system"):
            writer.settle()
        assert newest(checkpoints) == 10
        remount(folder)
        save(checkpoints, 30)
        assert names(folder) == ["step_000030"]

    on_a_disk_of(100, tmp_path, body)


def test_a_folder_that_others_may_not_write_to_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder=tmp_path / "run" / "checkpoints", keep=1)
    (tmp_path / "run").mkdir(mode=0o500)

    def child() -> int:
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 65534)
        with pytest.raises(CheckpointError, match=r"step 10 could not be saved in .*Permission denied"):
            save(checkpoints, 10)
        return PASSED

    assert in_a_child(child) == PASSED


@pytest.mark.parametrize("gone", ["checkpoints", "."])
def test_a_folder_removed_under_a_save_is_named_and_made_anew_by_the_next(tmp_path: Path, gone: str) -> None:
    checkpoints = Checkpoints(folder=tmp_path / "run" / "checkpoints", keep=1)
    save(checkpoints, 10)

    def write(folder: Path) -> None:
        weights_of(20, "")(folder)()
        shutil.rmtree(tmp_path / "run" / gone)

    writer = writer_of(checkpoints)
    writer.save(20, beside(write), state_of(20))
    with pytest.raises(CheckpointError, match=r"step 20 could not be saved in .*No such file or directory"):
        writer.settle()
    writer.save(30, weights_of(30, ""), state_of(30))
    writer.settle()
    assert newest(checkpoints) == 30
