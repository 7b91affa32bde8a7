"""Where rows are: a file, a folder of files, or a data set of the hub, each perhaps one split of it.

rows.jsonl    data/    data@test    owner/name    owner/name@train    owner/name:subset@train
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.data.base import DataError
from engine.data.forms import Columns, Format
from engine.data.readers import READERS, read_hub
from engine.data.rows import Rows
from engine.data.turns import Tags

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that describe the rows beside them."""
TYPES = ", ".join(READERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSet:
    """One split of a data set of the hub."""

    path: str
    subset: str
    split: str
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows that are all written alike.

    Example:
        Source(label="rows", path="data/rows.jsonl", files=(Path("data/rows.jsonl"),), hub=None)
    """

    label: str
    """What the ids of its rows begin with."""
    path: str
    """As the person gave it."""
    files: tuple[Path, ...] = ()
    hub: HubSet | None = None
    format: Format = Format.AUTO
    columns: Columns = field(default_factory=Columns)
    tags: Tags | None = None
    pairs: bool | None = None
    """Whether it is a set of preferences; None where nobody said."""
    num_rows: int = 0
    """So many of its rows, chosen by seed, some several times where it has fewer; 0 is all, once."""

    def rows(self, *, streaming: bool) -> Rows:
        """Raises DataError for a file that cannot be read; a bad row is told in its turn."""
        if self.hub is not None:
            hub = self.hub
            return read_hub(hub.path, subset=hub.subset, split=hub.split, folder=hub.folder, streaming=streaming)
        return itertools.chain.from_iterable(self._readers())

    def _readers(self) -> Iterator[Rows]:
        for file in self.files:
            label = self.label if len(self.files) == 1 else f"{self.label}-{file.stem}"
            yield READERS[file.suffix](file, label)

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Changes when a file does."""
        return tuple((str(file.absolute()), file.stat().st_mtime_ns, file.stat().st_size) for file in self.files)


def find_source(path: str) -> Source:
    """What a person means by a path. Raises DataError where there is no such thing."""
    base, split = place_and_split(path)
    if Path(base).exists():
        return local(Path(base), split=split, path=path)
    if is_hub_id(base):
        name, _, subset = base.partition(":")
        hub = HubSet(path=name, subset=subset, split=split or "train", folder="")
        return Source(label=f"{name.rpartition('/')[2]}-{hub.split}", path=path, hub=hub)
    folder, name = Path(base).parent, Path(base).name
    near = difflib.get_close_matches(name, [other.name for other in folder.iterdir()] if folder.is_dir() else [], n=1)
    hint = f"Did you mean {folder / near[0]}? " if near else ""
    raise DataError("no such file.", where=base, advice=f"{hint}Paths are relative to {Path.cwd()}; set data.path.")


def place_and_split(path: str) -> tuple[str, str]:
    """
    >>> place_and_split("owner/name:main@test"), place_and_split("rows.jsonl")
    (('owner/name:main', 'test'), ('rows.jsonl', ''))
    """
    place, mark, split = path.rpartition("@")
    return (place, split) if mark and not Path(path).exists() else (path, "")


def is_hub_id(place: str) -> bool:
    return bool(HUB_ID.fullmatch(place)) and Path(place).suffix not in READERS


def local(place: Path, *, split: str, path: str) -> Source:
    """A file, or the files below a folder; of a split, those that are named like it."""
    if place.is_file():
        if split:
            advice = "A file is one split: leave @ out."
            raise DataError(f"no split {split!r} in a file.", where=str(place), advice=advice)
        if place.suffix not in READERS:
            what = f"no rows are read from {place.suffix or 'a file without an ending'}."
            raise DataError(what, where=str(place), advice=f"Give one of {TYPES}.")
        return Source(label=place.stem, path=path, files=(place,))
    found = [file for file in sorted(place.rglob("*")) if _has_rows(file, place)]
    files = tuple(file for file in found if not split or _is_of(split, file.relative_to(place)))
    if not files:
        what = f"no split {split!r}" if split and found else "no file with rows"
        has = f"It has {', '.join(str(file.relative_to(place)) for file in found[:8])}. " if found else ""
        raise DataError(f"{what}.", where=str(place), advice=f"{has}Rows come from {TYPES}.")
    return Source(label=split or place.resolve().name, path=path, files=files)


def _has_rows(file: Path, below: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(below).parts)
    return file.suffix in READERS and file.name not in NOT_ROWS and not hidden and file.is_file()


def _is_of(split: str, file: Path) -> bool:
    """train.jsonl, train-00000-of-00002.parquet and train/a.csv are of the split train."""
    names = [*file.parts[:-1], file.stem]
    return any(re.fullmatch(rf"{re.escape(split)}([-_.].*)?", name) for name in names)


def with_own_labels(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Two sources of one name would give two rows one id."""
    taken: dict[str, int] = {}
    labelled = []
    for source in sources:
        taken[source.label] = number = taken.get(source.label, 0) + 1
        labelled.append(source if number == 1 else replace(source, label=f"{source.label}.{number}"))
    return tuple(labelled)
