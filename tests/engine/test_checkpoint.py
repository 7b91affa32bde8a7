"""Checkpoints: the newest valid one is found, damage is named, another run is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.checkpoint import MANIFEST, CheckpointError, Checkpoints, CheckpointState, manifest_of
from engine.checkpoint_writer import Begin, CheckpointWriter, Finish
from engine.fingerprint import flattened
from workers.config import TrainConfig
from workers.records import AlgorithmState

CONFIG = flattened({"train": TrainConfig()})


def state_of(step: int) -> CheckpointState:
    return CheckpointState(
        step=step,
        next_draw=32 * step,
        lessons_taken=0,
        algorithm=AlgorithmState(kl_coef=0.1 + 0.2),
        metrics_bytes=1000 * step,
        weights_version=step,
        seed=2**63 - 1,
        config=CONFIG,
        data_fingerprint="d" * 32,
    )


Write = Callable[[Path], object]


def at_once(write: Write) -> Begin:
    """Everything is written before the run goes on."""

    def begin(folder: Path) -> Finish:
        write(folder)
        return tuple

    return begin


def beside(write: Write) -> Begin:
    """Everything is written beside the run."""

    def begin(folder: Path) -> Finish:
        def finish() -> tuple[()]:
            write(folder)
            return ()

        return finish

    return begin


def weights_of(step: int, note: str) -> Begin:
    def write(folder: Path) -> None:
        (folder / "rank_0").mkdir()
        (folder / "rank_0" / "weights.bin").write_bytes(bytes([step % 256]) * 5000)
        (folder / "note.txt").write_text(note)

    return beside(write)


def writer_of(checkpoints: Checkpoints) -> CheckpointWriter:
    return CheckpointWriter(checkpoints, need_bytes=0)


def save(checkpoints: Checkpoints, step: int, note: str = "", *, best: frozenset[int] = frozenset()) -> Path:
    with writer_of(checkpoints) as writer:
        writer.save(step, weights_of(step, note), state_of(step), best=best)
    [path] = writer.committed()
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------- the plain way


def test_what_was_saved_is_what_is_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder=tmp_path / "run" / "checkpoints", keep=2)
    assert checkpoints.newest_valid() is None
    path = save(checkpoints, 10, "hello")
    found = checkpoints.newest_valid()
    assert found is not None
    assert (found.path, found.step, found.state, found.skipped) == (path, 10, state_of(10), ())
    assert path.name == "step_000010"
    assert (path / "note.txt").read_text() == "hello"
    listed = {entry["name"] for entry in json.loads((path / MANIFEST).read_text())["files"]}
    assert listed == {"state.json", "note.txt", "rank_0/weights.bin"}


def test_the_newest_by_number_is_found_and_the_oldest_are_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=2)
    for step in (9, 10, 999_999, 1_000_000):
        save(checkpoints, step)
    assert names(tmp_path) == ["step_1000000", "step_999999"]
    found = checkpoints.newest_valid()
    assert found is not None and found.step == 1_000_000


def test_a_state_survives_json_exactly() -> None:
    assert CheckpointState.from_json(state_of(10).to_json()) == state_of(10)


def test_a_state_of_another_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="state is of step 9"):
        writer_of(Checkpoints(folder=tmp_path, keep=1)).save(10, weights_of(10, ""), state_of(9))


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep is 0"):
        Checkpoints(folder=tmp_path, keep=0)


@pytest.mark.parametrize("keep", [1, 2])
def test_saving_a_step_again_replaces_it(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=keep)
    save(checkpoints, 10, "first")
    save(checkpoints, 10, "second")
    assert names(tmp_path) == ["step_000010"]
    found = checkpoints.newest_valid()
    assert found is not None and (found.path / "note.txt").read_text() == "second"


@pytest.mark.parametrize("when", [at_once, beside])
def test_a_save_that_raises_leaves_the_checkpoint_before_it(tmp_path: Path, when: Callable[[Write], Begin]) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=1)
    save(checkpoints, 10)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("the trainer died")

    with pytest.raises(RuntimeError, match="the trainer died"), writer_of(checkpoints) as writer:
        writer.save(20, when(fail), state_of(20))
    assert names(tmp_path) == ["step_000010"]


def test_a_disk_error_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"step 10 could not be saved in .*file"):
        save(Checkpoints(folder=tmp_path / "file", keep=1), 10)


# ----------------------------------------------------------------------------- damage


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("rank_0/weights.bin", flip_a_bit, "sha256"),
        ("rank_0/weights.bin", truncate, "has 4999 bytes, its manifest says 5000"),
        ("rank_0/weights.bin", Path.unlink, "rank_0/weights.bin is missing"),
        ("state.json", flip_a_bit, "sha256"),
        ("state.json", Path.unlink, "state.json is missing"),
        (MANIFEST, Path.unlink, "manifest.json is missing"),
        (MANIFEST, truncate, "not what was written"),
        (MANIFEST, lambda path: path.write_bytes(b""), "not what was written"),
        (MANIFEST, lambda path: path.write_text("[1]"), "not what was written"),
        (MANIFEST, lambda path: path.write_text('{"schema": 0, "files": []}'), "schema 0"),
        (MANIFEST, lambda path: path.write_text(manifest_of([])), "does not list state.json"),
    ],
)


@DAMAGES
def test_a_damaged_checkpoint_is_skipped_and_named(
    tmp_path: Path, file: str, damage: Callable[[Path], None], reason: str
) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=3)
    for step in (10, 20, 30):
        save(checkpoints, step)
    damage(tmp_path / "step_000030" / file)
    found = checkpoints.newest_valid()
    assert found is not None and found.step == 20
    assert [skipped.path.name for skipped in found.skipped] == ["step_000030"]
    assert reason in found.skipped[0].reason


@DAMAGES
def test_a_folder_with_nothing_but_damage_is_an_error(
    tmp_path: Path, file: str, damage: Callable[[Path], None], reason: str
) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=1)
    damage(save(checkpoints, 10) / file)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.newest_valid()
    for words in ("step_000010", reason, "Restore one", "another run name"):
        assert words in str(caught.value)


def test_every_bit_of_every_file_is_guarded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=1)
    path = save(checkpoints, 10, "x" * 40)
    for name in ("note.txt", "state.json"):
        whole = (path / name).read_bytes()
        for position in range(len(whole)):
            (path / name).write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
            with pytest.raises(CheckpointError):
                checkpoints.newest_valid()
        (path / name).write_bytes(whole)
    assert checkpoints.newest_valid() is not None


def test_a_damaged_newer_step_does_not_cost_the_valid_one_its_place(tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder=tmp_path, keep=1)
    save(checkpoints, 30)
    flip_a_bit(tmp_path / "step_000030" / "rank_0" / "weights.bin")
    save(checkpoints, 10)
    save(checkpoints, 20)
    found = checkpoints.newest_valid()
    assert found is not None and found.step == 20
    save(checkpoints, 30)
    assert names(tmp_path) == ["step_000030"]
    found = checkpoints.newest_valid()
    assert found is not None and found.step == 30 and found.skipped == ()


# ----------------------------------------------------------------------------- another run


def test_the_same_run_may_go_on() -> None:
    state_of(10).refuse_other_run(config=dict(reversed(CONFIG.items())), data_fingerprint="d" * 32)


def test_another_configuration_is_refused_key_by_key() -> None:
    now = flattened({"train": TrainConfig(learning_rate=2e-6, betas=(0.9, 0.95))}) | {"algo": "'GRPO'"}
    with pytest.raises(CheckpointError) as caught:
        state_of(10).refuse_other_run(config=now, data_fingerprint="d" * 32)
    message = str(caught.value)
    assert "train.learning_rate: saved 1e-06, now 2e-06" in message
    assert "train.betas: saved [0.9, 0.999], now [0.9, 0.95]" in message
    assert "algo: saved absent, now 'GRPO'" in message
    assert "weight_decay" not in message and "data:" not in message


def test_other_data_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"data: saved with fingerprint d+, now e+:"):
        state_of(10).refuse_other_run(config=CONFIG, data_fingerprint="e" * 32)


def test_a_long_list_of_differences_is_cut() -> None:
    saved = replace(state_of(10), config={f"key_{number:02}": "1" for number in range(30)})
    with pytest.raises(CheckpointError, match="and 18 more"):
        saved.refuse_other_run(config={}, data_fingerprint="d" * 32)
