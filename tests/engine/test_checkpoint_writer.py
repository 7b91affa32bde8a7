"""The writer of checkpoints: what it does beside the run, what it tells of it, and which checkpoints it keeps."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from test_checkpoint import at_once, beside, flip_a_bit, names, save, state_of, truncate, weights_of, writer_of

from engine.checkpoint import MANIFEST, CheckpointError, Checkpoints
from engine.checkpoint_writer import CheckpointWriter, Finish
from tests.disk_changes import Change, Perform, told
from workers.checkpoint_file import save_hashed
from workers.file_entry import FileEntry
from workers.records import AlgorithmState
from workers.stopped import WorkerDied

PATIENCE_S = 60.0


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(folder=tmp_path / "checkpoints", keep=2)


@pytest.fixture
def writer(checkpoints: Checkpoints) -> CheckpointWriter:
    return writer_of(checkpoints)


def begin(writer: CheckpointWriter, step: int) -> None:
    writer.save(step, weights_of(step, ""), state_of(step))


@contextmanager
def a_slow_disk() -> Iterator[Callable[[], None]]:
    """Whose fsyncs end when the function is called that this gives, or the block has ended."""
    go_on = threading.Event()

    def on_change(change: Change, perform: Perform) -> object:
        if change.verb == "fsync":
            assert go_on.wait(PATIENCE_S)
        return perform(change.data)

    with told(on_change):
        try:
            yield go_on.set
        finally:
            go_on.set()


@contextmanager
def a_disk_without_renaming() -> Iterator[None]:
    def on_change(change: Change, perform: Perform) -> object:
        if change.verb == "rename":
            raise OSError(5, "Input/output error")
        return perform(change.data)

    with told(on_change):
        yield


# ----------------------------------------------------------------------------- beside the run


def test_a_save_returns_when_the_trainers_have_begun(writer: CheckpointWriter, checkpoints: Checkpoints) -> None:
    threads, go_on = [], threading.Event()

    def begin(folder: Path) -> Finish:
        threads.append(threading.current_thread())

        def finish() -> Sequence[FileEntry]:
            threads.append(threading.current_thread())
            assert go_on.wait(PATIENCE_S)
            return weights_of(10, "")(folder)()

        return finish

    writer.save(10, begin, state_of(10))
    assert threads[0] is threading.main_thread()
    assert writer.committed() == []
    assert checkpoints.newest_valid() is None
    go_on.set()
    writer.settle()
    assert len(threads) == 2 and threads[1] is not threading.main_thread()
    assert writer.committed() == [checkpoints.folder / "step_000010"]
    assert writer.committed() == []
    found = checkpoints.newest_valid()
    assert found is not None and found.step == 10


def test_a_save_begins_when_the_one_before_has_ended(writer: CheckpointWriter, checkpoints: Checkpoints) -> None:
    with a_slow_disk() as go_on:
        begin(writer, 10)
        threading.Timer(0.2, go_on).start()
        seen: list[list[str]] = []
        writer.save(20, at_once(lambda folder: seen.append(names(checkpoints.folder))), state_of(20))
    [seen_by_the_second] = seen
    assert seen_by_the_second[0] == "step_000010" and len(seen_by_the_second) == 2
    writer.settle()
    assert [path.name for path in writer.committed()] == ["step_000010", "step_000020"]


def test_a_commit_keeps_no_process_alive(writer: CheckpointWriter) -> None:
    with a_slow_disk():
        begin(writer, 10)
        [thread] = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
        assert thread.daemon
    writer.settle()


def test_whoever_is_interrupted_while_settling_can_settle_again(writer: CheckpointWriter) -> None:
    with a_slow_disk():
        begin(writer, 10)
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            writer.settle()
        assert writer.committed() == []
    writer.settle()
    assert [path.name for path in writer.committed()] == ["step_000010"]


def test_leaving_waits_for_the_commit(writer: CheckpointWriter, checkpoints: Checkpoints) -> None:
    with a_slow_disk() as go_on, writer:
        begin(writer, 10)
        threading.Timer(0.2, go_on).start()
    assert "step_000010" in names(checkpoints.folder)


def test_a_file_is_not_read_again_that_was_hashed_when_it_was_written(
    writer: CheckpointWriter, checkpoints: Checkpoints
) -> None:
    """So what its writer said is in the manifest, and the disk is held to it when it is read."""

    def begin(folder: Path) -> Finish:
        written = save_hashed({"weights": [1.0]}, folder / "model.pt", within=folder)
        return lambda: [replace(written, sha256="0" * 64)]

    with writer:
        writer.save(10, begin, state_of(10))
    with pytest.raises(CheckpointError, match=r"model\.pt has the right size but not the bytes that were saved"):
        checkpoints.newest_valid()


@pytest.mark.parametrize(
    ("harm", "told"),
    [(lambda file: os.truncate(file, 9), r"model\.pt has 9 bytes, \d+ were written"), (os.remove, "No such file")],
)
def test_a_file_that_is_not_there_as_it_was_written_makes_no_checkpoint(
    writer: CheckpointWriter, checkpoints: Checkpoints, harm: Callable[[Path], None], told: str
) -> None:
    save(checkpoints, 10)

    def begin(folder: Path) -> Finish:
        written = save_hashed({"weights": [1.0]}, folder / "model.pt", within=folder)
        harm(folder / "model.pt")
        return lambda: [written]

    with (
        pytest.raises(CheckpointError, match=f"step 20 could not be saved in .*{told}"),
        writer,
    ):
        writer.save(20, begin, state_of(20))
    assert names(checkpoints.folder) == ["step_000010"]


# ----------------------------------------------------------------------------- what it tells


@pytest.mark.parametrize("ask", ["committed", "settle", "save", "leave"])
def test_a_commit_that_failed_is_told_once(writer: CheckpointWriter, checkpoints: Checkpoints, ask: str) -> None:
    save(checkpoints, 10)
    begun: list[Path] = []

    def ask_again() -> None:
        match ask:
            case "committed":
                while writer.committed() == []:
                    time.sleep(0.01)
            case "settle":
                writer.settle()
            case "save":
                writer.save(30, at_once(begun.append), state_of(30))
            case "leave":
                with writer:
                    pass

    with a_disk_without_renaming():
        begin(writer, 20)
        with pytest.raises(CheckpointError, match=r"step 20 could not be saved in .*Input/output error"):
            ask_again()
    assert begun == [], "something was written although nobody knew yet that the disk fails"
    assert names(checkpoints.folder) == ["step_000010"]
    assert writer.committed() == []
    begin(writer, 30)
    writer.settle()
    assert [path.name for path in writer.committed()] == ["step_000030"]


def test_a_block_left_by_an_error_keeps_it_and_notes_that_the_commit_failed(writer: CheckpointWriter) -> None:
    with pytest.raises(RuntimeError, match="the run's own") as caught, a_disk_without_renaming(), writer:
        begin(writer, 10)
        raise RuntimeError("the run's own")
    [note] = caught.value.__notes__
    assert note.startswith("step 10 could not be saved")


def test_a_trainer_that_fails_beside_the_run_is_raised_where_nothing_else_is(writer: CheckpointWriter) -> None:
    def fail(folder: Path) -> None:
        raise WorkerDied("policy 0 died while it was to save\n--- the last lines of its log")

    with pytest.raises(WorkerDied, match="policy 0 died"), writer:
        writer.save(10, beside(fail), state_of(10))
    with pytest.raises(RuntimeError, match="the run's own") as caught, writer:
        writer.save(20, beside(fail), state_of(20))
        raise RuntimeError("the run's own")
    assert caught.value.__notes__ == ["policy 0 died while it was to save"]


def test_old_ones_that_cannot_be_removed_are_told_beside_the_new_one(checkpoints: Checkpoints) -> None:
    writer = writer_of(replace(checkpoints, keep=1))
    save(checkpoints, 10)

    def on_change(change: Change, perform: Perform) -> object:
        if change.verb == "unlink":
            raise OSError(5, "Input/output error")
        return perform(change.data)

    with told(on_change):
        begin(writer, 20)
        with pytest.raises(
            CheckpointError, match=r"step 20 is saved in .*, but older checkpoints could not be removed"
        ):
            writer.settle()
    assert [path.name for path in writer.committed()] == ["step_000020"]
    begin(writer, 30)
    writer.settle()
    assert names(checkpoints.folder) == ["step_000030"]


def test_a_state_that_cannot_be_written_is_refused_before_anything_is(
    writer: CheckpointWriter, checkpoints: Checkpoints
) -> None:
    state = replace(state_of(10), algorithm=AlgorithmState(kl_coef=math.nan))
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.save(10, weights_of(10, ""), state)
    assert not checkpoints.folder.exists()


# ----------------------------------------------------------------------------- which are kept


def test_the_best_stay_beside_the_newest_as_long_as_they_are_named(checkpoints: Checkpoints) -> None:
    for step, best, kept in (
        (10, {10}, [10]),
        (20, {10}, [10, 20]),
        (30, {10}, [10, 20, 30]),
        (40, {10}, [10, 30, 40]),
        (50, {30, 999}, [30, 40, 50]),
        (60, {30, 50}, [30, 50, 60]),
        (70, set(), [60, 70]),
    ):
        save(checkpoints, step, best=frozenset(best))
        assert names(checkpoints.folder) == [f"step_{step:06d}" for step in kept]


def test_fewer_are_kept_from_the_next_save_on_after_a_restart(checkpoints: Checkpoints) -> None:
    for step in (10, 20, 30, 40):
        save(replace(checkpoints, keep=4), step)
    save(checkpoints, 50)
    assert names(checkpoints.folder) == ["step_000040", "step_000050"]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (MANIFEST, Path.unlink),
        (MANIFEST, truncate),
        ("state.json", truncate),
        ("rank_0/weights.bin", Path.unlink),
        ("rank_0", shutil.rmtree),
    ],
)
def test_a_damaged_one_takes_nobodys_place(checkpoints: Checkpoints, file: str, damage: Callable[[Path], None]) -> None:
    for step in (10, 20):
        save(checkpoints, step)
    damage(checkpoints.folder / "step_000020" / file)
    save(checkpoints, 30)
    assert names(checkpoints.folder) == ["step_000010", "step_000020", "step_000030"]
    save(checkpoints, 40)
    assert names(checkpoints.folder) == ["step_000030", "step_000040"]


def test_damage_that_only_reading_shows_never_costs_the_one_just_saved(checkpoints: Checkpoints) -> None:
    for step in (10, 20, 30):
        save(checkpoints, step)
        flip_a_bit(checkpoints.folder / f"step_{step:06d}" / "rank_0" / "weights.bin")
    with pytest.raises(CheckpointError, match="can be resumed from"):
        checkpoints.newest_valid()
    save(checkpoints, 40)
    found = checkpoints.newest_valid()
    assert found is not None and found.step == 40


def test_steps_that_a_resumed_run_has_not_come_to_again_are_left_alone(checkpoints: Checkpoints) -> None:
    for step in (10, 20, 30):
        save(replace(checkpoints, keep=3), step)
    flip_a_bit(checkpoints.folder / "step_000030" / "state.json")
    save(replace(checkpoints, keep=1), 20)
    assert names(checkpoints.folder) == ["step_000020", "step_000030"]
