"""Rows of one's own: any common form, out of files of any common type, or from the hub.

data=files data.path=rows.jsonl
data=files data.path=[chat.jsonl,alpaca.parquet] data.mix=interleave_under data.weights=[3,1]
data=files data.path=LLaMA-Factory/data/dataset_info.json data.names=[alpaca_en_demo]
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from engine.data.bad_rows import BadRowPolicy, BadRows, Tolerance
from engine.data.base import Conversation, DataError, Document, Judged, Preference, Question, RowKind, Split
from engine.data.forms import Columns, Format
from engine.data.mixing import HeldOutFrom, Mix
from engine.data.reading import Reading, Recipe, RecordStream, places_of, read
from engine.data.records import Record, RecordMaker
from engine.data.registry import REGISTRY, find_named, registry_of
from engine.data.sources import Source, find_source, with_own_labels


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesData:
    """Questions, conversations, preferences, judged answers or texts: what the algorithm learns from is read."""

    path: tuple[str, ...]
    """A file (json, jsonl, csv, parquet, arrow, txt), a folder of them, or a hub id (owner/name, owner/name@split,
    owner/name:subset@split); or several: [a.jsonl,b.parquet]. Or LLaMA-Factory's dataset_info.json."""
    names: tuple[str, ...] = ()
    """Data sets of that dataset_info.json, which says where they are and which columns they have."""
    format: Format = Format.AUTO
    """How rows are written; auto sees it from their columns, and the run says what it saw."""
    columns: Columns = field(default_factory=Columns)
    system_prompt: str = ""
    """Said first, where a row has no system turn of its own."""
    images_path: str = ""
    """The folder that images' names are relative to; empty: that of their file."""
    held_out: float = 0.05
    """Rows of each source that are never trained on: a number of them, or below 1 a share."""
    held_out_from: HeldOutFrom = HeldOutFrom.LAST
    """Which rows these are; of a stream, the first ones."""
    held_out_path: tuple[str, ...] = ()
    """What to evaluate on instead, as in data.path."""
    held_out_names: tuple[str, ...] = ()
    """The same, as in data.names."""
    max_rows: int = 0
    """Only each source's first rows; 0 takes all."""
    fractions: tuple[float, ...] = ()
    """For each source which share of its rows is trained on, chosen by seed; above 1 some come several times."""
    mix: Mix = Mix.CONCAT
    """How several sources become one."""
    weights: tuple[float, ...] = ()
    """For each source how often it is drawn from when interleaving; empty: in turns."""
    seed: int = 0
    """Of fractions, of interleaving and of rows held out at random."""
    longest_text: int = 1_000_000
    """Characters of a turn: a longer one is a bad row; 0 is no bound."""
    bad_rows: BadRowPolicy = BadRowPolicy.ERROR
    """error ends the run before it starts; skip leaves them out, counts them and lists them in the run's folder."""
    max_bad_share: float = 0.1
    """With skip: where more rows than this are bad, the run ends all the same."""
    check: bool = False
    """Only read every row, tell all bad ones and end: exit code 2 where there are any, else 0."""
    streaming: bool = False
    """Rows are read while the run goes on. The first 10,000 are checked before it, the others as they pass."""
    shuffle_rows: int = 10_000
    """Of a stream are kept in memory to draw from at random."""

    def __post_init__(self) -> None:
        for name in ("held_out", "max_rows", "longest_text"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        if self.held_out > 1 and self.held_out != int(self.held_out):
            raise ValueError(f"held_out is {self.held_out}: it is a number of rows, or below 1 a share of them")
        if not self.path:
            raise ValueError("path is empty: give a file, a folder or a hub id")
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}: a share is from 0 to below 1")
        if self.shuffle_rows < 1:
            raise ValueError(f"shuffle_rows is {self.shuffle_rows}: it must be 1 or more")
        if self.names and len(self.path) != 1:
            raise ValueError(f"path is a list of {len(self.path)}, and names are looked up in one {REGISTRY}")
        for name in ("fractions", "weights"):
            self._check_shares(name, getattr(self, name))
        if self.weights and self.mix is Mix.CONCAT:
            raise ValueError("weights are for interleaving: set mix=interleave_under, or use fractions instead")
        if self.streaming and self.held_out_from is HeldOutFrom.RANDOM:
            raise ValueError("held_out_from is random, and of a stream the first rows are held out: set last")
        if self.streaming and any(fraction > 1 for fraction in self.fractions):
            raise ValueError(f"fractions are {self.fractions}: of a stream at most 1, or use weights")

    def _check_shares(self, name: str, shares: tuple[float, ...]) -> None:
        sources = len(self.names or self.path)
        if shares and len(shares) != sources:
            raise ValueError(f"{name} has {len(shares)} numbers, and there are {sources} sources: give one for each")
        if not all(share > 0 for share in shares):
            raise ValueError(f"{name} are {shares}: each must be above 0")

    # ------------------------------------------------------------------ kinds of rows

    def questions(self, split: Split) -> Sequence[Question]:
        return cast(Sequence[Question], self._records(RowKind.QUESTIONS, split))

    def documents(self, split: Split) -> Sequence[Document]:
        return cast(Sequence[Document], self._records(RowKind.DOCUMENTS, split))

    def conversations(self, split: Split) -> Sequence[Conversation]:
        return cast(Sequence[Conversation], self._records(RowKind.CONVERSATIONS, split))

    def preferences(self, split: Split) -> Sequence[Preference]:
        return cast(Sequence[Preference], self._records(RowKind.PREFERENCES, split))

    def judged(self, split: Split) -> Sequence[Judged]:
        return cast(Sequence[Judged], self._records(RowKind.JUDGED, split))

    def _records(self, kind: RowKind, split: Split) -> Sequence[Record]:
        reading = self.read(kind)
        return reading.train if split is Split.TRAIN else reading.held_out

    # ------------------------------------------------------------------ reading

    def read(self, kind: RowKind) -> Reading:
        """All rows, read once for both splits. Raises DataError, which tells every bad row."""
        if self.streaming:
            raise DataError(
                f"{kind.value} are read whole here.", where="data.streaming", advice="Set data.streaming=false."
            )
        sources, held_out = self._sources()
        stamps = tuple(source.stamp() for source in (*sources, *held_out))
        return _read_once(self, kind, sources, held_out, stamps)

    def stream(self, kind: RowKind, *, drawn: int = 0) -> RecordStream:
        """Rows as they are read; `drawn`: how many an earlier stream has given, which are left out.

        Raises DataError as `read` does, for the first rows of each source.
        """
        sources, held_out = self._sources()
        return RecordStream(sources, held_out, self._recipe(kind), buffer_rows=self.shuffle_rows, drawn=drawn)

    def described(self, kind: RowKind) -> tuple[str, ...]:
        """What was found, for people: a line for each source. A stream describes itself."""
        return () if self.streaming else self.read(kind).described

    def bad(self, kind: RowKind) -> BadRows:
        """The rows that were left out. A stream has its own."""
        return BadRows(self.tolerance) if self.streaming else self.read(kind).bad

    def places(self, ids: Collection[str]) -> Mapping[str, str]:
        """Of rows, by their ids: file and line."""
        train, held_out = self._sources()
        return places_of((*train, *held_out), ids)

    @property
    def tolerance(self) -> Tolerance:
        return Tolerance(policy=self.bad_rows, max_share=self.max_bad_share, tell_all=self.check)

    def _recipe(self, kind: RowKind) -> Recipe:
        return Recipe(
            kind=kind,
            maker=functools.partial(RecordMaker, system_prompt=self.system_prompt, images_folder=self.images_path),
            longest_text=self.longest_text,
            max_rows=self.max_rows,
            held_out=self.held_out,
            held_out_from=self.held_out_from,
            fractions=self.fractions,
            mix=self.mix,
            weights=self.weights,
            seed=self.seed,
            tolerance=self.tolerance,
        )

    def _sources(self) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
        train = self._found(self.path, self.names)
        held_out_path = self.held_out_path or (self.path if self.held_out_names else ())
        both = with_own_labels([*train, *self._found(held_out_path, self.held_out_names)])
        return both[: len(train)], both[len(train) :]

    def _found(self, paths: tuple[str, ...], names: tuple[str, ...]) -> list[Source]:
        if names:
            registry = registry_of(paths[0])
            if registry is None:
                advice = f"data.names are looked up in a {REGISTRY}: set data.path to it."
                raise DataError(f"no {REGISTRY}.", where=paths[0], advice=advice)
            return [self._with_own_settings(find_named(registry, name)) for name in names]
        for path in paths:
            if path.endswith(REGISTRY) and registry_of(path):
                raise DataError("a list of data sets.", where=path, advice="Choose some: data.names=[...].")
        return [replace(find_source(path), format=self.format, columns=self.columns) for path in paths]

    def _with_own_settings(self, source: Source) -> Source:
        """What the person says wins over the registry."""
        columns = replace(source.columns, **self.columns.named())
        return replace(source, columns=columns, format=source.format if self.format is Format.AUTO else self.format)


@functools.lru_cache(maxsize=1)
def _read_once(
    data: FilesData, kind: RowKind, sources: tuple[Source, ...], held_out: tuple[Source, ...], stamps: object
) -> Reading:
    """Both splits come out of one pass; `stamps` say whether the files are still the same."""
    return read(sources, held_out, data._recipe(kind))
