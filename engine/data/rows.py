"""One row of a file, whatever the file's type, and what to say about a row that is bad."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.base import BadRow, RowError

REWARD_ARGUMENTS = frozenset({"response", "answer"})
CLIP = 80
ABSENT = object()
"""No value: the row as a whole is bad, or its column is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsFile:
    """Where rows come from.

    Example:
        RowsFile(label="train", path="data/train.jsonl", by_line=True)
    """

    label: str
    """What the ids of its rows begin with."""
    path: str
    by_line: bool
    """Whether its rows are told by line: its editor's own numbers."""

    @property
    def folder(self) -> Path:
        return Path(self.path).parent

    def where(self, number: int) -> str:
        return f"{self.path}:{number}" if self.by_line else f"{self.path}, row {number}"

    def refused(
        self, number: int, kind: str, *, advice: str, column: str = "", value: object = ABSENT, nearest: str = ""
    ) -> RowError:
        """What is wrong with a row. Only some of it may be known: it may not even be one."""
        shown = "" if value is ABSENT else clipped(value)
        about = f"column {column!r} is {shown}" if column and shown else f"no column {column!r}" if column else shown
        near = f"; the nearest is {nearest!r}" if nearest else ""
        bad = BadRow(
            id=f"{self.label}-{number}",
            where=self.where(number),
            kind=kind,
            column=column,
            value=shown,
            nearest=nearest,
            problem=f"{about}{near}: {kind}." if about else f"{kind}.",
        )
        return RowError(bad, advice=advice)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One row of a file.

    Example:
        FileRow(file=RowsFile(label="train", path="data/train.jsonl", by_line=True), number=17,
                values={"prompt": "12+34=", "answer": "46"})
    """

    file: RowsFile
    number: int
    """From 1."""
    values: Mapping[str, Any]

    @property
    def id(self) -> str:
        return f"{self.file.label}-{self.number}"

    @property
    def where(self) -> str:
        return self.file.where(self.number)

    def column(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise self.without(name) from None

    def text(self, name: str) -> str:
        """A column that must hold text."""
        return self.checked(self.column(name), name)

    def checked(self, value: Any, column: str, *, longest: int = 0, may_be_empty: bool = False) -> str:
        """A value as a text that a tokenizer can read; `longest`: characters, 0 is no bound."""
        if type(value) is not str:
            raise self.bad("not a text", column, value, "Give a text.")
        if not may_be_empty and (not value or value.isspace()):
            raise self.bad("empty", column, value, "Give a text, or leave the row out.")
        if longest and len(value) > longest:
            raise self.bad(
                f"longer than {longest:,} characters", column, value, "Cut it, or set a larger data.longest_text."
            )
        if "\0" in value:
            raise self.bad("has a NUL character", column, value, "Remove it: it is a sign of a damaged file.")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self.bad(
                    "has half of a surrogate pair, or bytes that are not UTF-8", column, value, "Save it as UTF-8."
                ) from None
        return value

    def others(self, *names: str) -> dict[str, Any]:
        """The columns that are not named, which the reward gets as keyword arguments beside its own two."""
        others = {name: value for name, value in self.values.items() if name not in names}
        for name in REWARD_ARGUMENTS & others.keys():
            raise self.bad(
                "it has the name of an argument that every reward has already",
                name,
                others[name],
                "Rename the column, or name it in the settings of data.",
            )
        return others

    def without(self, name: str) -> RowError:
        """A column is missing."""
        names = ", ".join(map(repr, self.values)) or "none"
        return self.file.refused(
            self.number,
            "it is missing",
            column=name,
            nearest=nearest_name(name, self.values),
            advice=f"Mend the row, or name the column in the settings of data; this row has {clipped_text(names)}.",
        )

    def bad(self, kind: str, column: str, value: object, advice: str) -> RowError:
        return self.file.refused(self.number, kind, column=column, value=value, advice=advice)


RowOrError = FileRow | RowError
Rows = Iterator[RowOrError]
"""A bad line ends no reading: it is told in its turn."""


def nearest_name(name: str, names: Mapping[str, Any]) -> str:
    """The name that is most like the one that was looked for; empty where none is.

    >>> nearest_name("answer", {"Prompt": 1, "anwser ": 2})
    'anwser '
    """
    plain = {str(other).strip().lower(): str(other) for other in names if other != name}
    near = difflib.get_close_matches(name.strip().lower(), plain, n=1)
    return plain[near[0]] if near else ""


def clipped(value: object) -> str:
    """
    >>> clipped("a" * 200)[-8:], len(clipped(list(range(500)))), clipped("12+34=")
    ('aaaaa...', 80, "'12+34='")
    """
    # A megabyte of text is not written out first, to be cut then.
    try:
        return clipped_text(repr(value[: CLIP + 1] if isinstance(value, (str, bytes)) else value))
    except RecursionError:
        return "(lists in lists without end)"


def clipped_text(text: str) -> str:
    return text if len(text) <= CLIP else f"{text[: CLIP - 3]}..."
