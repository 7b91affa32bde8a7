"""Checkpoints after the power has failed: of a save, only what it had synced is certain to be there."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_checkpoint import state_of, weights_of
from test_checkpoint_crashes import SCENES, Scene, assert_all_valid, found_in, scratch  # noqa: F401  a fixture

from engine.checkpoint import CheckpointError
from engine.checkpoint_writer import CheckpointWriter
from tests.disk_changes import Change, Perform, told
from tests.power_loss import Disk, Tree, write

PLACE = Path("runs") / "name" / "checkpoints"
DRAWS = 6
"""By chance, after each change; beside the three that are no chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a power loss left after one change of a save."""

    after: Change
    tree: Tree
    is_told: bool
    """By then the writer had said that the checkpoint was committed."""


def all_left(scene: Scene, root: Path, *, passes_over: Callable[[int, Change], bool]) -> list[Left]:
    """`root`: a folder that is made, for the scene. `passes_over`: whether the n-th change is kept from the disk."""
    root.mkdir()
    if scene.before:
        (root / PLACE).parent.mkdir(parents=True)
        scene.set_up(root / PLACE)
    disk, chance = Disk(root), random.Random(20)
    writer = CheckpointWriter(scene.checkpoints(root / PLACE), need_bytes=0)
    left: list[Left] = []
    number, told_of = 0, list[Path]()

    def look(after: Change) -> None:
        trees = disk.after_power_loss(chance, draws=DRAWS)
        left.extend(Left(after=after, tree=tree, is_told=bool(told_of)) for tree in trees)

    def on_change(change: Change, perform: Perform) -> object:
        nonlocal number
        done = perform(change.data)
        number += 1
        told_of.extend(writer.committed())
        if not passes_over(number, change):
            disk.make(change)
        look(change)
        return done

    with told(on_change):
        writer.save(scene.step, weights_of(scene.step, "new"), state_of(scene.step), best=scene.best)
        writer.settle()
    told_of.extend(writer.committed())
    look(left[-1].after)
    return left


def check(scene: Scene, left: Left, folder: Path) -> None:
    """A folder that is made and removed."""
    checkpoints = scene.checkpoints(write(left.tree, folder) / PLACE)
    try:
        now = found_in(checkpoints)
        assert now in (scene.before_it, (scene.step, "new")), left.after
        assert now is not None or scene.before_it is None, left.after
        assert now == (scene.step, "new") or not left.is_told, left.after
        if (folder / PLACE).exists():
            assert_all_valid(scene, folder / PLACE, folder / "copy")
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_whenever_the_power_fails_a_valid_checkpoint_is_left(scene: Scene, scratch: Path) -> None:  # noqa: F811
    every = all_left(scene, scratch / "disk", passes_over=lambda number, change: False)
    assert any(left.is_told for left in every) and len(every) > 200
    for left in every:
        check(scene, left, scratch / "left")


def is_safe(scene: Scene, left: Left, folder: Path) -> bool:
    try:
        check(scene, left, folder)
    except (AssertionError, CheckpointError):
        return False
    return True


@pytest.mark.parametrize("scene", SCENES[:3], ids=lambda scene: scene.name)
def test_a_save_without_any_one_of_its_fsyncs_is_not_safe(scene: Scene, scratch: Path) -> None:  # noqa: F811
    """Of what it makes or changes. That this shows is also what the test above is worth."""
    changes: list[tuple[int, Change]] = []
    roots = (scratch / f"disk_{number}" for number in itertools.count())

    def note(number: int, change: Change) -> bool:
        changes.append((number, change))
        return False

    root = next(roots)
    all_left(scene, root, passes_over=note)
    new = root if scene.before_it is None else root / PLACE
    fsyncs = [number for number, change in changes if change.verb == "fsync" and change.path.is_relative_to(new)]
    assert len(fsyncs) >= 8
    for left_out in fsyncs:
        every = all_left(scene, next(roots), passes_over=lambda number, _, left_out=left_out: number == left_out)
        assert not all(is_safe(scene, left, scratch / "left") for left in every), changes[left_out - 1]
