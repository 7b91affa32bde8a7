"""Questions of one's own, one JSON object per line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.data.base import DataError, Question, Split
from engine.data.files import FileRow, messages_of, read_rows, split_rows
from workers.records import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlData:
    """Each row has a prompt (a text, or a list of messages) and an answer; its other columns reach the reward."""

    path: str
    """A .jsonl file, or a .json file with a list of rows."""
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    held_out: int = 200
    """The file's last rows, which are never trained on; unless held_out_path is set."""
    held_out_path: str = ""
    """A file of its own to evaluate on, instead of this file's last rows."""
    system_prompt: str = ""
    """Said before every question."""
    limit: int = 0
    """Only this file's first rows; 0 takes all."""

    def __post_init__(self) -> None:
        for name, count in (("held_out", self.held_out), ("limit", self.limit)):
            if count < 0:
                raise ValueError(f"{name} is {count}: it must be 0 or more")

    def questions(self, split: Split) -> Sequence[Question]:
        rows = read_rows(self.path)
        rows = rows[: self.limit] if self.limit else rows
        held_out_rows = read_rows(self.held_out_path) if self.held_out_path else ()
        return [
            self._question(row) for row in split_rows(rows, split, held_out=self.held_out, held_out_rows=held_out_rows)
        ]

    def _question(self, row: FileRow) -> Question:
        prompt = row.column(self.prompt_column)
        is_list = isinstance(prompt, list)
        turns = messages_of(prompt, row.where) if is_list else (ask(row.text(self.prompt_column)),)
        return Question(
            id=row.id,
            messages=(*system(self.system_prompt), *turns),
            answer=_answer(row, self.answer_column),
            row=row.others(self.prompt_column, self.answer_column),
        )


def system(prompt: str) -> tuple[Message, ...]:
    """The turn that opens a conversation, if there is one."""
    return (Message(role="system", content=prompt),) if prompt else ()


def ask(text: str) -> Message:
    return Message(role="user", content=text)


def _answer(row: FileRow, name: str) -> str:
    value = row.column(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"column {name!r} is {value!r:.80}.", where=row.where, advice="It must be a text or a number.")
    return value
