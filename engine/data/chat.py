"""Conversations of one's own, in OpenAI's or in ShareGPT's form, to imitate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.data.base import Conversation, DataError, Split
from engine.data.files import FileRow, messages_of, read_rows, split_rows

SHAREGPT_COLUMN = "conversations"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatData:
    """Each row has a list of messages with at least one assistant turn."""

    path: str
    """A .jsonl file, or a .json file with a list of rows."""
    messages_column: str = "messages"
    """Where a row has none, ShareGPT's `conversations` is read."""
    held_out: int = 0
    """The file's last rows, which are never trained on."""

    def __post_init__(self) -> None:
        if self.held_out < 0:
            raise ValueError(f"held_out is {self.held_out}: it must be 0 or more")

    def conversations(self, split: Split) -> Sequence[Conversation]:
        rows = split_rows(read_rows(self.path), split, held_out=self.held_out, held_out_rows=())
        return [self._conversation(row) for row in rows]

    def _conversation(self, row: FileRow) -> Conversation:
        is_sharegpt = self.messages_column not in row.values and SHAREGPT_COLUMN in row.values
        messages = messages_of(row.column(SHAREGPT_COLUMN if is_sharegpt else self.messages_column), row.where)
        if not any(message.role == "assistant" for message in messages):
            raise DataError(
                "no assistant turn.", where=row.where, advice="There is nothing to learn from: leave it out."
            )
        return Conversation(id=row.id, messages=messages, tools=(), images=())
