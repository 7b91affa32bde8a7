"""What a data set gives: questions for the online algorithms, conversations for the offline ones.

A data set is a frozen dataclass of settings, named in `conf/data/`; it reads its rows when it is asked for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from workers.records import Message


class DataError(Exception):
    """A row or a file that cannot be used: printed without a traceback, exit code 2."""

    def __init__(self, problem: str, *, where: str, advice: str, kind: str = "") -> None:
        super().__init__(f"{where}: {problem}\n  {advice}")
        self.problem = problem
        self.where = where
        """The file and line, or the row's id."""
        self.advice = advice
        self.kind = kind or problem
        """The problem without what is this row's own, for counting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """What is wrong with one row.

    Example:
        BadRow(id="train-17", where="data/train.jsonl:17", kind="no such column", column="answer", value="",
               nearest="anwser", problem="no column 'answer'; the nearest is 'anwser'.")
    """

    id: str
    where: str
    """For people: the file and its line or row."""
    kind: str
    """The reason in few words, the same for every row that has it."""
    column: str
    """Empty where the row as a whole is bad."""
    value: str
    """Of the column, as Python writes it, clipped."""
    nearest: str
    """The row's own column whose name is most like that of the missing one."""
    problem: str
    """The reason in a sentence."""


class RowError(DataError):
    """One row of a file that cannot be used; a pass over the file goes on behind it."""

    def __init__(self, bad: BadRow, *, advice: str) -> None:
        super().__init__(bad.problem, where=bad.where, advice=advice, kind=bad.kind)
        self.bad = bad


class Split(Enum):
    """Which part of a data set."""

    TRAIN = "train"
    HELD_OUT = "held_out"
    """Never trained on; evaluation asks these."""


class RowKind(Enum):
    """What the rows of a data set are; an algorithm says which it learns from."""

    QUESTIONS = "questions"
    """Prompts, whose answers are sampled and judged."""
    DOCUMENTS = "documents"
    """Texts, to read as they are."""
    CONVERSATIONS = "conversations"
    """Turns, of which the assistant's are imitated."""
    PREFERENCES = "preferences"
    """Two answers to one conversation, of which one is better."""
    JUDGED = "judged"
    """One answer to a conversation, that was approved of or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt before it is rendered.

    Example:
        Question(id="arithmetic-12-34", messages=(Message(role="user", content="12+34="),), answer="46",
                 row={"a": 12, "b": 34}, from_text=True)
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    row: Mapping[str, object]
    """The other columns of the data row, handed to the reward as keyword arguments; `answer` among them, as it is
    written there, where that is no text."""
    from_text: bool
    """Whether the row asks in a text rather than in messages: foreign rewards are handed what the row has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns to learn from: assistant turns are answers to imitate.

    Example:
        Conversation(id="chat-3", tools=(), images=(),
                     messages=(Message(role="user", content="12+34="), Message(role="assistant", content="46")))
    """

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...]
    """Descriptions of the functions that the assistant may call, as JSON schemas, for the chat template."""
    images: tuple[str, ...]
    """Files, one for each `<image>` in the messages, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two endings of one conversation; the first is the better one.

    Example:
        Preference(id="dpo-3", asked=Conversation(id="dpo-3", ...), chosen=(Message(role="assistant", content="46"),),
                   rejected=(Message(role="assistant", content="47"),), margin=0.0)
    """

    id: str
    asked: Conversation
    """What both answer; ends with a turn that is not the assistant's."""
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float
    """By how much the chosen one is better, where the data say so; else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An answer that was approved of or not, without another one beside it.

    Example:
        Judged(id="kto-3", asked=Conversation(id="kto-3", ...), answer=(Message(role="assistant", content="46"),),
               desirable=True)
    """

    id: str
    asked: Conversation
    answer: tuple[Message, ...]
    desirable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text without turns.

    Example:
        Document(id="c4-3", text="Once upon a time ...")
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Imitated:
    """What of a conversation is learned."""

    last_answer_only: bool
    """Earlier answers are context alone."""
    prompt_too: bool
    """Every token, whoever wrote it."""


@runtime_checkable
class OnlineData(Protocol):
    """Asks questions; answers are sampled and judged."""

    def questions(self, split: Split) -> Sequence[Question]:
        """In the data set's own order."""
        ...


@runtime_checkable
class ConversationData(Protocol):
    """Shows conversations, which are learned from as they are."""

    def conversations(self, split: Split) -> Sequence[Conversation]: ...


@runtime_checkable
class DocumentData(Protocol):
    """Shows texts without turns."""

    def documents(self, split: Split) -> Sequence[Document]: ...


@runtime_checkable
class PreferenceData(Protocol):
    """Shows two answers, one of them better."""

    def preferences(self, split: Split) -> Sequence[Preference]: ...


@runtime_checkable
class JudgedData(Protocol):
    """Shows answers that were approved of, or not."""

    def judged(self, split: Split) -> Sequence[Judged]: ...


OfflineData = ConversationData | DocumentData | PreferenceData | JudgedData

GIVES: Mapping[RowKind, type] = {
    RowKind.QUESTIONS: OnlineData,
    RowKind.DOCUMENTS: DocumentData,
    RowKind.CONVERSATIONS: ConversationData,
    RowKind.PREFERENCES: PreferenceData,
    RowKind.JUDGED: JudgedData,
}
"""What a data set is that has rows of a kind."""
