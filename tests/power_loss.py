"""What a disk may hold after the power has failed.

Only this is certain: a file's bytes as of its last fsync, a folder's list of names as of that folder's. Each later
change may be there or not, by itself: a name without the bytes, bytes without the name, the later of two renames
without the earlier, a write cut anywhere or zeros in its place. A change of names, a rename too, happens or does not.
(File systems promise more, each something else: ext4 keeps the order in which names change.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.disk_changes import Change

Tree = dict[str, "bytes | Tree"]
"""What a folder holds, by name."""


@dataclass(slots=True)
class _File:
    synced: bytes = b""
    now: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Renaming:
    """A change of a folder's names."""

    gone: str | None = None
    come: str | None = None
    named: _File | _Folder | None = None
    """By the one that comes."""


@dataclass(slots=True)
class _Folder:
    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    unsynced: list[_Renaming] = field(default_factory=list)

    def now(self) -> dict[str, _File | _Folder]:
        return self.after(self.unsynced)

    def after(self, changes: Sequence[_Renaming]) -> dict[str, _File | _Folder]:
        names = dict(self.synced)
        for change in changes:
            if change.gone is not None:
                names.pop(change.gone, None)
            if change.come is not None and change.named is not None:
                names[change.come] = change.named
        return names


class Disk:
    """A folder and all below it, under changes, whose power may fail after any of them."""

    def __init__(self, root: Path) -> None:
        """Of `root`, all is certain as it is now. Changes elsewhere are passed over."""
        self._root = root
        self._tree = _read(root)

    def make(self, change: Change) -> None:
        """Raises NotImplementedError for what checkpoints have no use for."""
        if change.path != self._root and self._root not in change.path.parents:
            return
        if change.verb == "fsync":
            self._sync(change.path)
            return
        folder, name = self._at(change.path.parent), change.path.name
        assert isinstance(folder, _Folder)
        there = folder.now().get(name)
        match change.verb:
            case "mkdir":
                folder.unsynced.append(_Renaming(come=name, named=_Folder()))
            case "open" if isinstance(there, _File):
                there.now = b""
            case "open":
                folder.unsynced.append(_Renaming(come=name, named=_File()))
            case "write" if isinstance(there, _File):
                there.now += change.data
            case "unlink" | "rmdir":
                folder.unsynced.append(_Renaming(gone=name))
            case "rename" if change.to is not None and change.to.parent == change.path.parent:
                folder.unsynced.append(_Renaming(gone=name, come=change.to.name, named=there))
            case _:
                raise NotImplementedError(change)

    def after_power_loss(self, chance: random.Random, *, draws: int) -> Iterator[Tree]:
        """What is left: only what is certain; also all names, without the bytes; all; and so many by chance."""
        yield _left(self._tree, lambda changes: (), lambda file: file.synced)
        yield _left(self._tree, lambda changes: changes, lambda file: file.synced)
        yield _left(self._tree, lambda changes: changes, lambda file: file.now)
        for _ in range(draws):
            yield _left(self._tree, lambda changes: _some_of(changes, chance), lambda file: _some(file, chance))

    def _at(self, path: Path) -> _File | _Folder:
        here: _File | _Folder = self._tree
        for name in path.relative_to(self._root).parts:
            assert isinstance(here, _Folder)
            here = here.now()[name]
        return here

    def _sync(self, path: Path) -> None:
        what = self._at(path)
        if isinstance(what, _Folder):
            what.synced = what.now()
            what.unsynced.clear()
        else:
            what.synced = what.now


def write(tree: Tree, folder: Path) -> Path:
    """As files, in a folder that is made."""
    folder.mkdir()
    for name, what in tree.items():
        if isinstance(what, bytes):
            (folder / name).write_bytes(what)
        else:
            write(what, folder / name)
    return folder


def _read(path: Path) -> _Folder:
    return _Folder(synced={inside.name: _read_one(inside) for inside in path.iterdir()})


def _read_one(path: Path) -> _File | _Folder:
    if path.is_dir():
        return _read(path)
    data = path.read_bytes()
    return _File(synced=data, now=data)


def _left(
    folder: _Folder, names: Callable[[Sequence[_Renaming]], Sequence[_Renaming]], data: Callable[[_File], bytes]
) -> Tree:
    """`names`, `data`: what of the changes is left."""
    return {
        name: data(what) if isinstance(what, _File) else _left(what, names, data)
        for name, what in folder.after(names(folder.unsynced)).items()
    }


def _some_of(changes: Sequence[_Renaming], chance: random.Random) -> Sequence[_Renaming]:
    share = chance.random()
    return [change for change in changes if chance.random() < share]


def _some(file: _File, chance: random.Random) -> bytes:
    """As it was, cut anywhere, or zeros of the right length."""
    if file.now == file.synced:
        return file.synced
    return chance.choice((file.synced, file.now[: chance.randint(0, len(file.now))], bytes(len(file.now))))
