"""Damage to checkpoints, by chance: of every kind of file, in every way that disks and people have, all is found."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from test_checkpoint import at_once, state_of, writer_of

from engine.checkpoint import MANIFEST, STATE, CheckpointError, Checkpoints

FILES = {
    "model": "policy/mp_rank_00_model_states.pt",
    "optimizer": "policy/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "reference": "reference.safetensors",
    "state": STATE,
    "manifest": MANIFEST,
}
DAMAGES_EACH = 200
PAGE = 4096

Damage = Callable[[bytes, bytes, random.Random], bytes | None]
"""From a file's bytes and those of the same file of another step, what is found later; None: no file."""


def truncated(data: bytes, _: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def a_bit_flipped(data: bytes, _: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def a_page_of_zeros(data: bytes, _: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(0, len(data), PAGE)
    return data[:at] + bytes(len(data[at : at + PAGE])) + data[at + PAGE :]


def deleted(data: bytes, _: bytes, chance: random.Random) -> None:
    return None


def emptied(data: bytes, _: bytes, chance: random.Random) -> bytes:
    return b""


def of_another_step(data: bytes, other: bytes, chance: random.Random) -> bytes:
    return other


DAMAGES: tuple[Damage, ...] = (truncated, a_bit_flipped, a_page_of_zeros, deleted, emptied, of_another_step)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Steps 10 and 20, with the files of a trainer and of a reference that moved: each larger than a page, with numbers
    that any change matters to and stretches of zeros, as in the moments of an embedding that was hardly used."""
    checkpoints, chance = Checkpoints(folder=tmp_path_factory.mktemp("checkpoints"), keep=2), random.Random(10)

    def write(folder: Path) -> None:
        (folder / "policy").mkdir()
        for name in (FILES["model"], FILES["optimizer"], FILES["reference"]):
            (folder / name).write_bytes(chance.randbytes(9000) + bytes(PAGE) + chance.randbytes(3000))

    with writer_of(checkpoints) as writer:
        for step in (10, 20):
            writer.save(step, at_once(write), state_of(step))
    return checkpoints


@pytest.mark.parametrize("kind", FILES)
def test_all_damage_by_chance_is_found_and_what_is_whole_is_used(saved: Checkpoints, kind: str) -> None:
    chance, counts = random.Random(f"damage to the {kind}"), Counter[str]()
    file, twin = (saved.folder / f"step_{step:06d}" / FILES[kind] for step in (20, 10))
    whole, other = file.read_bytes(), twin.read_bytes()
    while counts.total() < DAMAGES_EACH:
        damage = DAMAGES[counts.total() % len(DAMAGES)]
        found = damage(whole, other, chance)
        if found == whole:
            continue  # a page of zeros that were zeros
        counts[damage.__name__] += 1
        file.unlink()
        if found is not None:
            file.write_bytes(found)

        resumed = saved.newest_valid()
        assert resumed is not None and resumed.step == 10, damage.__name__
        [skipped] = resumed.skipped
        assert skipped.path == saved.folder / "step_000020" and skipped.reason
        with pytest.raises(CheckpointError, match=r"step_000020 is damaged"):
            saved.of_step(20)
        file.write_bytes(whole)
    assert min(counts.values()) >= DAMAGES_EACH // len(DAMAGES)
    resumed = saved.newest_valid()
    assert resumed is not None and resumed.step == 20 and resumed.skipped == ()


def test_a_bit_that_makes_a_name_point_elsewhere_is_damage_like_any_other(tmp_path: Path) -> None:
    """An `o` and a `/` differ in one bit."""
    checkpoints = Checkpoints(folder=tmp_path, keep=1)
    with writer_of(checkpoints) as writer:
        writer.save(10, at_once(lambda folder: (folder / "optimizer.pt").write_bytes(b"1")), state_of(10))
    manifest = tmp_path / "step_000010" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"optimizer.pt"', '"/ptimizer.pt"'))
    with pytest.raises(CheckpointError, match=r"step_000010: /ptimizer.pt is missing"):
        checkpoints.newest_valid()


def test_a_whole_checkpoint_under_the_name_of_another_step_is_damage(saved: Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(saved.folder / "step_000010", tmp_path / "step_000030")
    with pytest.raises(CheckpointError, match="step_000030: it holds the state of step 10"):
        Checkpoints(folder=tmp_path, keep=1).newest_valid()
