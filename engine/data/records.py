"""A row of a file as the record that an algorithm learns from: the same one from every form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.base import Conversation, Document, Judged, Preference, Question, RowKind
from engine.data.forms import Format, Layout
from engine.data.rows import REWARD_ARGUMENTS, FileRow
from engine.data.turns import IMAGE, TurnReader, ask, refuse_empty, system, tools_of
from workers.records import Message

Record = Question | Document | Conversation | Preference | Judged
ANSWER = "answer"
GROUND_TRUTH = "ground_truth"
WORDS = {"true": True, "false": False}
"""What a file whose type knows only text writes for yes and no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordMaker:
    """Makes a record of each row of one source. Raises RowError."""

    layout: Layout
    reader: TurnReader
    system_prompt: str
    """Where a row has none of its own."""
    images_folder: str
    """What images' names are relative to; empty: their file's folder."""

    def maker(self) -> Callable[[FileRow], Record]:
        match self.layout.kind:
            case RowKind.QUESTIONS:
                return self._question
            case RowKind.DOCUMENTS:
                return self._document
            case RowKind.CONVERSATIONS:
                return self._conversation
            case RowKind.PREFERENCES:
                return self._preference
            case RowKind.JUDGED:
                return self._judged

    # ------------------------------------------------------------------ kinds

    def _question(self, row: FileRow) -> Question:
        columns = self.layout.columns
        messages = self._opened(row, self._prompt(row))
        refuse_empty(messages, row, columns.prompt)
        if columns.images:
            self._images(row, messages)
        answer = _answer(row, columns.answer, self.layout.format) if columns.answer else ""
        # A reward of verl's reads reward_model itself, too.
        used = [columns.prompt, columns.query, columns.system]
        # A foreign reward asks for the answer by its column's own name, too.
        used += [columns.answer] if columns.answer in REWARD_ARGUMENTS else []
        others = row.others(*used)
        written = row.values.get(columns.answer)
        if columns.answer and written != answer and self.layout.format is not Format.VERL:
            others[ANSWER] = written
        from_text = isinstance(row.values[columns.prompt], str)
        return Question(id=self._id(row), messages=messages, answer=answer, row=others, from_text=from_text)

    def _document(self, row: FileRow) -> Document:
        # No bound on the length: a text is cut to the context's size, and a book is one.
        column = self.layout.columns.text
        return Document(id=self._id(row), text=row.checked(row.column(column), column))

    def _conversation(self, row: FileRow) -> Conversation:
        columns = self.layout.columns
        messages = self._said(row)
        if not any(message.role == "assistant" for message in messages):
            column = columns.messages or columns.response
            raise row.bad(
                "no assistant turn", column, row.values.get(column), "There is nothing to learn: leave it out."
            )
        return self._as_conversation(row, messages)

    def _preference(self, row: FileRow) -> Preference:
        columns = self.layout.columns
        chosen, rejected = self.reader.answer(row, columns.chosen), self.reader.answer(row, columns.rejected)
        asked: tuple[Message, ...]
        if _is_whole(chosen) and _is_whole(rejected):
            asked, chosen, rejected = self._apart(row, chosen, rejected)
        elif columns.messages or columns.prompt:
            asked = self._before(row)
        else:
            raise row.bad("nothing is asked", columns.chosen, row.values[columns.chosen], "Begin with a user turn.")
        if chosen == rejected:
            value = row.values[columns.rejected]
            raise row.bad("chosen and rejected are the same", columns.rejected, value, "Leave the row out.")
        for column, answer in ((columns.chosen, chosen), (columns.rejected, rejected)):
            if not answer or answer[0].role != "assistant":
                raise row.bad("not an answer of the assistant's", column, row.values[column], "Give its turn.")
        conversation = self._asking(row, asked, columns.messages or columns.prompt or columns.chosen)
        margin = self._margin(row)
        return Preference(id=conversation.id, asked=conversation, chosen=chosen, rejected=rejected, margin=margin)

    def _judged(self, row: FileRow) -> Judged:
        columns = self.layout.columns
        messages = self._said(row)
        column = columns.messages or columns.response
        end = len(messages)
        while end and messages[end - 1].role == "assistant":
            end -= 1
        if end == len(messages):
            raise row.bad("it does not end with the assistant", column, row.values.get(column), "Leave the row out.")
        asked = self._asking(row, messages[:end], columns.messages or columns.prompt)
        return Judged(id=asked.id, asked=asked, answer=messages[end:], desirable=_label(row, columns.label))

    # ------------------------------------------------------------------ parts

    def _id(self, row: FileRow) -> str:
        column = self.layout.columns.id
        if not column:
            return row.id
        value = row.column(column)
        if type(value) is int:
            return str(value)
        return row.checked(value, column)

    def _said(self, row: FileRow) -> tuple[Message, ...]:
        """All turns of a conversation that is learned from."""
        columns = self.layout.columns
        if columns.messages:
            return self.reader.turns(row, columns.messages)
        return (*self._before(row), *self.reader.answer(row, columns.response))

    def _before(self, row: FileRow) -> tuple[Message, ...]:
        """The turns that are answered."""
        columns = self.layout.columns
        if columns.messages:
            value = row.column(columns.messages)
            if isinstance(value, dict):  # OpenAI's {"messages": [...], "tools": [...]}
                return self.reader.turns_of(row, columns.messages, value.get("messages"))
            return self.reader.turns(row, columns.messages)
        return (*self._history(row), *self._prompt(row))

    def _prompt(self, row: FileRow) -> tuple[Message, ...]:
        columns = self.layout.columns
        query = row.values.get(columns.query) if columns.query else None
        if not query or (type(query) is str and query.isspace()):
            return self.reader.prompt(row, columns.prompt)
        texts = [row.values.get(columns.prompt), row.checked(query, columns.query, longest=self.reader.longest_text)]
        # Either may be left empty, as in alpaca.
        if texts[0]:
            texts[0] = row.checked(texts[0], columns.prompt, longest=self.reader.longest_text)
        return (ask("\n".join(text for text in texts if text)),)

    def _history(self, row: FileRow) -> tuple[Message, ...]:
        column = self.layout.columns.history
        history = row.values.get(column) if column else None
        if not history:
            return ()
        pairs = history if isinstance(history, list) else [history]
        turns: list[Message] = []
        for pair in pairs:
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
                raise row.bad("not a list of pairs", column, history, "Give [[asked, answered], ...].")
            asked, answered = (row.checked(text, column, longest=self.reader.longest_text) for text in pair)
            turns += [ask(asked), Message(role="assistant", content=answered)]
        return tuple(turns)

    def _opened(self, row: FileRow, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """With the system turn of the row's own column, or that of the settings, where the turns have none."""
        if messages and messages[0].role == "system":
            return messages
        column = self.layout.columns.system
        own = row.values.get(column) if column else None
        text = row.checked(own, column, may_be_empty=True) if own is not None else ""
        return (*system(text if text.strip() else self.system_prompt), *messages)

    def _asking(self, row: FileRow, messages: tuple[Message, ...], column: str) -> Conversation:
        """A conversation that somebody has to answer."""
        if not messages or messages[-1].role == "assistant":
            value = row.values.get(column)
            raise row.bad("its last turn is the assistant's: nothing is asked", column, value, "End with a user turn.")
        return self._as_conversation(row, messages)

    def _as_conversation(self, row: FileRow, messages: tuple[Message, ...]) -> Conversation:
        columns = self.layout.columns
        messages = self._opened(row, messages)
        refuse_empty(messages, row, columns.messages or columns.prompt or columns.chosen)
        tools = tools_of(row, columns.tools) if columns.tools else ()
        images = self._images(row, messages) if columns.images else ()
        return Conversation(id=self._id(row), messages=messages, tools=tools, images=images)

    def _images(self, row: FileRow, messages: Sequence[Message]) -> tuple[str, ...]:
        column = self.layout.columns.images
        value = row.values.get(column)
        names = [] if value is None or value == "" else value if isinstance(value, list) else [value]
        marks = sum(message.content.count(IMAGE) for message in messages)
        if len(names) != marks:
            noun = "image" if len(names) == 1 else "images"
            raise row.bad(
                f"as many images as {IMAGE} marks are needed",
                column,
                value,
                f"The turns have {marks} {IMAGE}, and the row has {len(names)} {noun}.",
            )
        if not all(isinstance(name, str) for name in names):
            raise row.bad("not the name of a file", column, value, "Save the images as files and give their names.")
        folder = Path(self.images_folder) if self.images_folder else row.file.folder
        found = tuple(name if "://" in name else str(folder / name) for name in names)
        for path in found:
            if "://" not in path and not Path(path).is_file():
                raise row.bad("no such image", column, path, "Set data.images_path to the folder of the images.")
        return found

    def _margin(self, row: FileRow) -> float:
        column = self.layout.columns.margin
        value = row.values.get(column) if column else None
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise row.bad("not a number", column, value, "Give a finite number.")
        return float(value)

    def _apart(
        self, row: FileRow, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
    ) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
        """Two whole conversations: their common beginning, up to the last turn that somebody answers, and two ends."""
        common = next(
            (place for place, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other),
            min(len(chosen), len(rejected)),
        )
        while common and (chosen[common - 1].role == "assistant" or common in (len(chosen), len(rejected))):
            common -= 1
        column = self.layout.columns.rejected
        if not common:
            value = row.values[column]
            raise row.bad("chosen and rejected answer different questions", column, value, "Leave the row out.")
        return chosen[:common], chosen[common:], rejected[common:]


def _is_whole(answer: tuple[Message, ...]) -> bool:
    """Whether it holds what is asked, too."""
    return bool(answer) and answer[0].role != "assistant"


def _answer(row: FileRow, column: str, format: Format) -> str:
    """The right answer as a text: where the format has other things, too, their JSON. verl's is a part of a mapping."""
    value, may_be_any = row.column(column), format in (Format.TRL, Format.OPENRLHF)
    if isinstance(value, Mapping) and not may_be_any:
        if GROUND_TRUTH not in value:
            raise row.bad(f"it has no {GROUND_TRUTH}", column, value, f'Give {{"{GROUND_TRUTH}": ...}}.')
        value, may_be_any = value[GROUND_TRUTH], True
    if may_be_any and isinstance(value, (dict, list, bool)) and value not in ({}, []):
        return json.dumps(value, default=str)
    if type(value) is str:
        return row.checked(value, column)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = "not a text or a number (data.format=trl takes answers of any kind)"
        raise row.bad(kind, column, value, "Give the right answer.")
    if not math.isfinite(value):
        raise row.bad("not a finite number", column, value, "Give the right answer.")
    return str(value)


def _label(row: FileRow, column: str) -> bool:
    value: Any = row.column(column)
    value = WORDS.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise row.bad("not true or false", column, value, "Say whether the answer was approved of.")
    return value
