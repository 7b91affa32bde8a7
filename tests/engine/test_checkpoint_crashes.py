"""Checkpoints of processes killed anywhere: at every change of the disk, and in the middle of a write."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_checkpoint import names, save

from engine.checkpoint import Checkpoints

CRASHED = 77
OPERATIONS = ("fsync", "rename", "mkdir", "unlink", "rmdir")


def crash_during(operation_number: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that dies just before its n-th change of the disk; False if it has fewer."""
    child = os.fork()
    if child == 0:
        count = 0

        def dying(operation: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **named: object) -> object:
                nonlocal count
                count += 1
                if count == operation_number:
                    os._exit(CRASHED)
                return operation(*arguments, **named)

            return call

        for name in OPERATIONS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == CRASHED


def assert_all_valid(folder: Path, copy: Path) -> None:
    """Every step folder is valid: looked at newest first in a copy, taking each away to see the next."""
    checkpoints = Checkpoints(folder=shutil.copytree(folder, copy), keep=1)
    while (found := checkpoints.newest_valid()) is not None:
        assert found.skipped == ()
        shutil.rmtree(found.path)


@pytest.mark.parametrize(("before", "step"), [([], 20), ([10], 20), ([10], 10), ([10, 20], 30)])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_crash_at_any_operation_leaves_a_valid_checkpoint(
    tmp_path: Path, keep: int, before: list[int], step: int
) -> None:
    number, outcomes = 0, set()
    while True:
        number += 1
        folder = tmp_path / f"crash_{number}"
        folder.mkdir()
        checkpoints = Checkpoints(folder=folder, keep=keep)
        for earlier in before:
            save(checkpoints, earlier, "old")
        crashed = crash_during(number, lambda checkpoints=checkpoints: save(checkpoints, step, "new"))

        found = checkpoints.newest_valid()
        note = None if found is None else (found.path / "note.txt").read_text()
        outcomes.add((None if found is None else found.step, note))
        assert found is not None or not before
        assert_all_valid(folder, tmp_path / f"copy_{number}")

        save(checkpoints, 40, "next")
        assert names(folder)[-1] == "step_000040"
        assert not any(".tmp-" in name for name in names(folder))
        assert len(names(folder)) <= keep
        shutil.rmtree(folder)
        if not crashed:
            break
    assert number > 10
    assert outcomes == {(before[-1], "old") if before else (None, None), (step, "new")}


KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests/engine")
from test_checkpoint import state_of
from engine.checkpoint import Checkpoints

def write(folder):
    (folder / "weights.bin").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

Checkpoints(folder=Path(sys.argv[1]), keep=1).save(20, write, state_of(20))
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
