"""A file of a checkpoint, as its manifest lists it: named and hashed by whoever has written or read it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """What a file is."""

    name: str
    """Below the step folder, with forward slashes."""
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, *, within: Path) -> FileEntry:
        """As it is read now."""
        return cls(name=path.relative_to(within).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
