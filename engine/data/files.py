"""Rows out of JSON files, read strictly: whatever is wrong is named by file and line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.base import DataError, Split
from workers.records import Message

REWARD_ARGUMENTS = frozenset({"response", "answer"})
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One row of a file.

    Example:
        FileRow(id="train-17", where="data/train.jsonl, line 17", values={"prompt": "12+34=", "answer": "46"})
    """

    id: str
    where: str
    """For people."""
    values: Mapping[str, Any]

    def column(self, name: str) -> Any:
        if name not in self.values:
            raise DataError(
                f"no column {name!r}; it has {', '.join(map(repr, self.values)) or 'none'}.",
                where=self.where,
                advice="Name the column to read in data.*_column, or mend the row.",
            )
        return self.values[name]

    def text(self, name: str) -> str:
        """A column that must hold text."""
        value = self.column(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"column {name!r} is {value!r}.", where=self.where, advice="It must be a text, not empty.")
        return value

    def others(self, *names: str) -> dict[str, Any]:
        """The columns that are not named, which the reward gets as keyword arguments beside its own two."""
        others = {name: value for name, value in self.values.items() if name not in names}
        for name in REWARD_ARGUMENTS & others.keys():
            raise DataError(
                f"column {name!r} has the name of an argument that every reward has already.",
                where=self.where,
                advice="Rename the column, or name it in data.*_column.",
            )
        return others


def read_rows(path: str) -> tuple[FileRow, ...]:
    """The rows of a JSON-lines file, or of a JSON file that holds a list."""
    file = Path(path)
    if not file.is_file():
        raise DataError("no such file.", where=path, advice=f"Paths are relative to {Path.cwd()}; set data.path.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}.", where=path, advice="Save it as UTF-8 text.") from error
    rows = _rows_of_list(file, text) if file.suffix == ".json" else _rows_of_lines(file, text)
    if not rows:
        raise DataError("no rows.", where=path, advice="Give a file with one JSON object per line.")
    return rows


def _rows_of_lines(file: Path, text: str) -> tuple[FileRow, ...]:
    # Not splitlines(): a JSON text may hold U+2028 and the like, which are no ends of lines here.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return tuple(
        _row(_parse(line, f"{file}, line {number}"), file, number, f"{file}, line {number}") for number, line in lines
    )


def _rows_of_list(file: Path, text: str) -> tuple[FileRow, ...]:
    rows = _parse(text, str(file))
    if not isinstance(rows, list):
        raise DataError(
            "not a list of rows.", where=str(file), advice="Give [{...}, {...}], or one row per line (.jsonl)."
        )
    return tuple(_row(values, file, number, f"{file}, row {number}") for number, values in enumerate(rows, start=1))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error}.", where=where, advice="Give one JSON object per line.") from error


def _row(values: Any, file: Path, number: int, where: str) -> FileRow:
    if not isinstance(values, dict):
        raise DataError(f"not a JSON object but {values!r:.80}.", where=where, advice="Give one JSON object per row.")
    return FileRow(id=f"{file.stem}-{number}", where=where, values=values)


def split_rows(
    rows: Sequence[FileRow], split: Split, *, held_out: int, held_out_rows: Sequence[FileRow]
) -> Sequence[FileRow]:
    """A split of `rows`: their last `held_out` ones are held out, unless there are rows meant for that."""
    if held_out_rows:
        return rows if split is Split.TRAIN else held_out_rows
    if held_out >= len(rows):
        raise DataError(
            f"{len(rows)} rows, and data.held_out is {held_out}: none are left to train on.",
            where=rows[0].where,
            advice="Set a smaller data.held_out.",
        )
    cut = len(rows) - held_out
    return rows[:cut] if split is Split.TRAIN else rows[cut:]


def messages_of(value: Any, where: str) -> tuple[Message, ...]:
    """Turns as OpenAI writes them (`role`, `content`) or as ShareGPT does (`from`, `value`)."""
    if not isinstance(value, list) or not value:
        raise DataError(
            f"not a list of messages but {value!r:.80}.", where=where, advice="Give [{role, content}, ...]."
        )
    return tuple(_message(turn, f"{where}, message {number}") for number, turn in enumerate(value, start=1))


def _message(turn: Any, where: str) -> Message:
    keys = set(turn) if isinstance(turn, dict) else set()
    if {"role", "content"} <= keys:
        role, content, roles = turn["role"], turn["content"], dict(zip(ROLES, ROLES, strict=True))
    elif {"from", "value"} <= keys:
        role, content, roles = turn["from"], turn["value"], SHAREGPT_ROLES
    else:
        raise DataError(f"not a message: {turn!r:.80}.", where=where, advice="Give {role, content} or {from, value}.")
    if role not in roles:
        raise DataError(f"unknown role {role!r}.", where=where, advice=f"It is one of: {', '.join(roles)}.")
    if not isinstance(content, str):
        raise DataError(f"its content is {content!r:.80}.", where=where, advice="Only text is supported.")
    return Message(role=roles[role], content=content)
