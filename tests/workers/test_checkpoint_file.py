"""A checkpoint's file is what torch would have written, is hashed on its way, and says when the disk failed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from workers import checkpoint_file
from workers.checkpoint_file import BLOCK, CheckpointFile, save_hashed
from workers.file_entry import FileEntry

SIZES = (0, 1, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 4097)


@pytest.fixture(params=["direct", "through_the_cache"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On a file system that goes past the page cache, where the test machine's does; and on one that cannot."""
    if request.param == "through_the_cache":
        monkeypatch.setattr(os, "O_DIRECT", 0)
    return tmp_path


def pieces(data: bytes) -> Iterator[memoryview]:
    """As torch hands it on: a few bytes here, a large array there."""
    left, sizes = memoryview(data), (7, 64, 100_001, BLOCK + 12_345)
    for turn in range(len(data) + 1):
        if not left:
            return
        size = sizes[turn % len(sizes)]
        yield left[:size]
        left = left[size:]


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_any_number_arrive_and_their_hash_is_known(folder: Path, size: int) -> None:
    data, path = os.urandom(size), folder / "model.pt"
    file = CheckpointFile(path)
    for piece in pieces(data):
        assert file.write(piece) == len(piece)
    written = file.finish()
    file.close()
    assert path.read_bytes() == data
    assert written == (size, hashlib.sha256(data).hexdigest())


def test_a_state_is_read_as_it_was(folder: Path) -> None:
    state = {"weights": torch.arange(3_000_000.0), "of": {"step": 3, "half": torch.ones(5, dtype=torch.bfloat16)}}
    (folder / "policy").mkdir()
    path = folder / "policy" / "model.pt"
    written = save_hashed(state, path, within=folder)
    data = path.read_bytes()
    assert written == FileEntry(name="policy/model.pt", size=len(data), sha256=hashlib.sha256(data).hexdigest())
    found = torch.load(path)
    assert torch.equal(found["weights"], state["weights"])
    assert found["of"]["step"] == 3 and torch.equal(found["of"]["half"], state["of"]["half"])


def test_a_shorter_file_takes_the_place_of_a_longer_one(folder: Path) -> None:
    (folder / "model.pt").write_bytes(bytes(3 * BLOCK))
    written = save_hashed({"step": 3}, folder / "model.pt", within=folder)
    assert (folder / "model.pt").stat().st_size == written.size < BLOCK
    assert torch.load(folder / "model.pt") == {"step": 3}


@pytest.mark.parametrize("writes", [0, 1])
def test_a_disk_that_fills_up_is_told_at_the_end_with_its_number(
    folder: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first block and at a later one; a write that is cut short comes first, as disks do it."""
    write, left = os.write, [BLOCK] * writes + [BLOCK // 2 + 100, 0]

    def until_full(descriptor: int, data: memoryview) -> int:
        room = left.pop(0) if left else 0
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: room // 4096 * 4096])

    monkeypatch.setattr(checkpoint_file.os, "write", until_full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_hashed({"weights": torch.ones(4_000_000)}, folder / "model.pt", within=folder)
    assert caught.value.errno == errno.ENOSPC


def test_a_device_that_wants_larger_pages_is_written_to_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = os.write, []

    def refuse_once(descriptor: int, data: memoryview) -> int:
        if not refused:
            refused.append(len(data))
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(descriptor, data)

    file, data = CheckpointFile(tmp_path / "model.pt"), os.urandom(BLOCK + 5)
    if not fcntl.fcntl(file._descriptor, fcntl.F_GETFL) & os.O_DIRECT:
        pytest.skip("the file system of this machine's temporary folder goes through the page cache")
    monkeypatch.setattr(checkpoint_file.os, "write", refuse_once)
    file.write(data[:BLOCK])
    monkeypatch.undo()
    file.write(data[BLOCK:])
    file.finish()
    file.close()
    assert refused == [BLOCK] and (tmp_path / "model.pt").read_bytes() == data


def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_hashed({}, folder / "nowhere" / "model.pt", within=folder)
