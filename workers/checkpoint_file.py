"""A file of a checkpoint: written once from front to end, hashed on its way, and past the page cache where the file
system can.

Nobody in this run reads it. In the page cache it would push out what somebody does read, and the kernel would first
have to find memory for all of it: gigabytes, while engines decode. Hashed as it is written it is not read again for the
manifest, and each rank hashes its own.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils.serialization import config as serialization

from workers.file_entry import FileEntry

BLOCK = 4 * 2**20
"""Bytes that are written at once, from memory that begins at a page, as devices want it."""


class RankFiles:
    """What one rank writes of one checkpoint. A disk that fails is told of when all ranks are done: before that they
    wait for each other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: list[FileEntry] = []
        self._failed: OSError | None = None

    def save(self, state_dict: object, path: str) -> None:
        """As DeepSpeed calls it."""
        try:
            self._written.append(save_hashed(state_dict, Path(path), within=self._folder))
        except OSError as error:
            self._failed = error

    def written(self) -> tuple[FileEntry, ...]:
        """All of them. Raises OSError where one could not be written."""
        if self._failed is not None:
            raise self._failed
        return tuple(self._written)


def save_hashed(state: object, path: Path, *, within: Path) -> FileEntry:
    """`torch.save`, of which is known what was written. Raises OSError where the disk failed."""
    file = CheckpointFile(path)
    try:
        # The manifest has the SHA-256 of each file; a zip file's own checksums would take as long again.
        with serialization.patch("save.compute_crc32", False):
            torch.save(state, file)
        size, sha256 = file.finish()
    finally:
        file.close()
    return FileEntry(name=path.relative_to(within).as_posix(), size=size, sha256=sha256)


class CheckpointFile:
    """What `torch.save` writes to.

    A disk that fails is told of by `finish`: an error on the way would leave torch's own writer half way in a file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = _opened(path)
        self._block, self._filled = memoryview(mmap.mmap(-1, BLOCK)), 0
        self._digest, self._size = hashlib.sha256(), 0
        self._failed: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        left = memoryview(data).cast("B")
        written = len(left)
        self._digest.update(left)
        self._size += written
        while left and self._failed is None:
            taken = min(len(left), BLOCK - self._filled)
            self._block[self._filled : self._filled + taken] = left[:taken]
            self._filled, left = self._filled + taken, left[taken:]
            if self._filled == BLOCK:
                self._empty()
        return written

    def flush(self) -> None:
        """torch asks for it at its end; nobody reads before `finish`."""

    def finish(self) -> tuple[int, str]:
        """Its size and SHA-256, when everything is on the disk. Raises OSError where it is not."""
        # The rest is no whole number of pages.
        self._through_the_cache()
        self._empty()
        if self._failed is not None:
            raise self._failed
        os.fsync(self._descriptor)
        return self._size, self._digest.hexdigest()

    def close(self) -> None:
        os.close(self._descriptor)

    def _empty(self) -> None:
        left, self._filled = self._block[: self._filled], 0
        while left and self._failed is None:
            try:
                left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                # A device of larger pages, or what is left after a write that was cut short.
                if error.errno != errno.EINVAL or not self._through_the_cache():
                    self._failed = error

    def _through_the_cache(self) -> bool:
        """From now on; whether it was not before."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)


def _opened(path: Path) -> int:
    anew = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with suppress(OSError):  # of a file system without it; what else is wrong, the second one says
        return os.open(path, anew | os.O_DIRECT, 0o666)
    return os.open(path, anew, 0o666)
