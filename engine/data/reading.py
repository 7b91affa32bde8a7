"""Rows of sources as records: all of them at once, or as they pass by."""

from __future__ import annotations

import gc
import itertools
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from engine.data.bad_rows import BadRowPolicy, BadRows, Tolerance
from engine.data.base import DataError, RowKind
from engine.data.forms import layout_of
from engine.data.mixing import HeldOutFrom, Mix, chosen, mixed, shuffled, taken
from engine.data.records import Record, RecordMaker
from engine.data.rows import FileRow, Rows
from engine.data.sources import Source
from engine.data.turns import TurnReader

LOOKED_AT = 1000
"""Rows of a source that say how it is written."""
AGAIN = re.compile(r"~\d+$")
"""Ends the id of a row that comes again."""
CHECKED = 10_000
"""Rows of a stream that are read before the run starts; the others are checked as they pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How sources become what a run learns from."""

    kind: RowKind
    maker: Callable[..., RecordMaker]
    """From a layout and a turn reader."""
    longest_text: int
    max_rows: int
    held_out: float
    held_out_from: HeldOutFrom
    fractions: tuple[float, ...]
    mix: Mix
    weights: tuple[float, ...]
    seed: int
    tolerance: Tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]
    described: tuple[str, ...]
    """Of each source how it is written and how many rows it has, for people."""
    bad: BadRows


class OpenSource:
    """A source whose form is known."""

    def __init__(self, source: Source, recipe: Recipe, *, streaming: bool) -> None:
        """Raises DataError where it has no rows, or none of a form that is known."""
        self.source, self._recipe, self._streaming = source, recipe, streaming
        rows = source.rows(streaming=streaming)
        head = list(itertools.islice(rows, LOOKED_AT))
        if not head:
            advice = "Give a file with rows, such as one JSON object per line."
            raise DataError("no rows.", where=source.path, advice=advice)
        self._begun: Rows | None = itertools.chain(head, rows)
        if recipe.kind is RowKind.PREFERENCES and source.pairs is False:
            advice = 'Write "ranking": true there, or choose another data set.'
            raise DataError("it is no set of preferences.", where=source.path, advice=advice)
        good = [row for row in head if isinstance(row, FileRow)]
        self.layout = layout_of(good, recipe.kind, source.format, source.columns, source.path)
        reader = TurnReader(tags=source.tags, longest_text=recipe.longest_text)
        self._maker = recipe.maker(layout=self.layout, reader=reader)

    def records(self, bad: BadRows) -> Iterator[Record]:
        """From its first row; what cannot be used is added to `bad`."""
        rows, self._begun = self._begun or self.source.rows(streaming=self._streaming), None
        make = self._maker.maker()
        records = bad.collect(rows, _with_unique_ids(make, self.layout.columns.id) if self.layout.columns.id else make)
        return itertools.islice(records, self._recipe.max_rows or None)


def read(sources: Sequence[Source], held_out_sources: Sequence[Source], recipe: Recipe) -> Reading:
    """All rows. Raises DataError, which tells every bad row, where there are more than are tolerated."""
    bad = BadRows(recipe.tolerance)
    opened = [OpenSource(source, recipe, streaming=False) for source in (*sources, *held_out_sources)]
    with _no_search_for_cycles():
        read_rows = [list(source.records(bad)) for source in opened]
    bad.settle()
    own, apart = read_rows[: len(sources)], read_rows[len(sources) :]
    splits = [
        _split(rows, source, recipe) if not apart else (rows, []) for rows, source in zip(own, sources, strict=True)
    ]
    trains = [
        _resized(train, source, number, recipe)
        for number, ((train, _), source) in enumerate(zip(splits, sources, strict=True))
    ]
    return Reading(
        train=_with_own_ids(mixed([partial(iter, train) for train in trains], recipe.mix, recipe.weights, recipe.seed)),
        held_out=_with_own_ids(itertools.chain(*(out for _, out in splits), *apart)),
        described=tuple(
            f"{source.source.path}: {len(rows):,} {source.layout}{', held out' if number >= len(sources) else ''}"
            for number, (source, rows) in enumerate(zip(opened, read_rows, strict=True))
        ),
        bad=bad,
    )


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Records are many and in no cycles: Python would spend a quarter of the time looking for some."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _split(records: Sequence[Record], source: Source, recipe: Recipe) -> tuple[Sequence[Record], Sequence[Record]]:
    count = held_out_rows(recipe.held_out, len(records))
    if records and count >= len(records):
        raise DataError(
            f"{len(records)} rows, and data.held_out is {count}: none are left to train on.",
            where=source.path,
            advice="Set a smaller data.held_out.",
        )
    if recipe.held_out_from is HeldOutFrom.LAST:
        return records[: len(records) - count], records[len(records) - count :]
    out = set(chosen(len(records), count, f"{recipe.seed}/held_out/{source.label}"))
    train = [record for index, record in enumerate(records) if index not in out]
    return train, [record for index, record in enumerate(records) if index in out]


def held_out_rows(held_out: float, rows: int) -> int:
    """A number of rows, or below 1 a share of them.

    >>> held_out_rows(200, 1000), held_out_rows(0.05, 1000)
    (200, 50)
    """
    return int(held_out) if held_out >= 1 else int(held_out * rows)


def _resized(train: Sequence[Record], source: Source, number: int, recipe: Recipe) -> Sequence[Record]:
    """As many as the person wants, and the registry."""
    key = f"{recipe.seed}/rows/{source.label}"
    if source.num_rows:
        train = taken(train, source.num_rows, key)
    fraction = recipe.fractions[number] if recipe.fractions else 1.0
    return train if fraction == 1.0 else taken(train, round(fraction * len(train)), key)


def _with_own_ids(records: Iterator[Record]) -> tuple[Record, ...]:
    """A row that comes again is told from its first time."""
    times: dict[str, int] = {}
    own = []
    for record in records:
        times[record.id] = number = times.get(record.id, 0) + 1
        own.append(record if number == 1 else replace(record, id=f"{record.id}~{number}"))
    return tuple(own)


def places_of(sources: Iterable[Source], ids: Collection[str]) -> Mapping[str, str]:
    """Where the rows with these ids are: their file and line."""
    wanted = {id: AGAIN.sub("", id) for id in ids}
    looked_for = {*wanted, *wanted.values()}
    places = {id: where for source in sources for id, where in _with_ids(source) if id in looked_for}
    return {id: places.get(id, places.get(first, id)) for id, first in wanted.items()}


def _with_ids(source: Source) -> Iterator[tuple[str, str]]:
    """Each row's id, and where it is."""
    column = source.columns.id
    for row in source.rows(streaming=False):
        if isinstance(row, FileRow):
            yield (str(row.values.get(column)) if column else row.id), row.where


def _with_unique_ids(make: Callable[[FileRow], Record], column: str) -> Callable[[FileRow], Record]:
    first: dict[str, str] = {}

    def made(row: FileRow) -> Record:
        record = make(row)
        if record.id in first:
            advice = "Give every row an id of its own, or leave data.columns.id empty."
            raise row.bad(f"another row ({first[record.id]}) has this id", column, record.id, advice)
        first[record.id] = row.where
        return record

    return made


# ----------------------------------------------------------------------------- as they pass


class RecordStream:
    """Records without end, as they are read, each pass over the sources in an order keyed by (seed, pass).

    It goes on where an earlier one stopped when it is told how many were drawn: those are read again and left out.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        held_out_sources: Sequence[Source],
        recipe: Recipe,
        *,
        buffer_rows: int,
        drawn: int = 0,
    ) -> None:
        """Reads and checks the first rows of each source, and all that are held out. Raises DataError as `read`."""
        self._recipe, self._buffer_rows = recipe, buffer_rows
        self._opened = [OpenSource(source, recipe, streaming=True) for source in sources]
        self.bad = BadRows(recipe.tolerance)
        """Of the first rows, and of the first pass as far as it has come."""
        heads = [list(itertools.islice(opened.records(self.bad), CHECKED)) for opened in self._opened]
        self.bad.settle()
        share = 0.0 if held_out_sources else recipe.held_out
        counts = [held_out_rows(share, len(head)) for head in heads]
        all_rows = replace(recipe, held_out=0.0, fractions=(), weights=(), mix=Mix.CONCAT)
        apart = read(held_out_sources, (), all_rows).train
        self.held_out: tuple[Record, ...] = (*itertools.chain(*map(_first, heads, counts)), *apart)
        """Never trained on: rows of their own, or the first ones of each source."""
        self.described = tuple(f"{opened.source.path}: a stream of {opened.layout}" for opened in self._opened)
        self._held_out_counts = counts
        self._rows = itertools.islice(self._passes(), drawn, None)
        self.drawn = drawn
        """Records taken so far: what a checkpoint keeps."""

    def take(self, count: int) -> list[Record]:
        """The next ones. Raises DataError at a bad row, or at one too many."""
        rows = list(itertools.islice(self._rows, count))
        self.drawn += len(rows)
        return rows

    def _passes(self) -> Iterator[Record]:
        for number in itertools.count():
            bad = BadRows(self._recipe.tolerance)
            if number == 0:
                self.bad = bad
            key = f"{self._recipe.seed}/pass/{number}"
            found_any = False
            for record in shuffled(self._one_pass(bad, number), self._buffer_rows, key):
                found_any = True
                yield record
            if not found_any:
                raise DataError(
                    "there is nothing to train on.", where="a stream", advice="Hold out fewer rows, or add some."
                )

    def _one_pass(self, bad: BadRows, number: int) -> Iterator[Record]:
        recipe = self._recipe
        sources = [partial(self._source, opened, place, bad, number) for place, opened in enumerate(self._opened)]
        yield from mixed(sources, recipe.mix, recipe.weights, recipe.seed)
        bad.settle()

    def _source(self, opened: OpenSource, place: int, bad: BadRows, number: int) -> Iterator[Record]:
        recipe = self._recipe
        share = recipe.fractions[place] if recipe.fractions else 1.0
        limit = opened.source.num_rows or None
        records = itertools.islice(opened.records(bad), self._held_out_counts[place], None)
        told = len(bad.found)
        for index, record in enumerate(itertools.islice(records, limit)):
            if len(bad.found) > told:
                told = len(bad.found)
                # A share of few rows says little; the first ones were checked.
                if recipe.tolerance.policy is BadRowPolicy.ERROR or bad.seen >= CHECKED:
                    bad.settle()
            if share < 1.0 and not _is_in(share, f"{recipe.seed}/{opened.source.label}/{index}"):
                continue
            yield record


def _first(records: Sequence[Record], count: int) -> Sequence[Record]:
    return records[:count]


def _is_in(share: float, key: str) -> bool:
    return random.Random(key).random() < share
