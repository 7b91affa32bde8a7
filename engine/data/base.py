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

    def __init__(self, problem: str, *, where: str, advice: str) -> None:
        super().__init__(f"{where}: {problem}\n  {advice}")
        self.problem = problem
        self.where = where
        """The file and line, or the row's id."""
        self.advice = advice


class Split(Enum):
    """Which part of a data set."""

    TRAIN = "train"
    HELD_OUT = "held_out"
    """Never trained on; evaluation asks these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt before it is rendered.

    Example:
        Question(id="arithmetic-12-34", messages=(Message(role="user", content="12+34="),), answer="46",
                 row={"a": 12, "b": 34})
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    row: Mapping[str, object]
    """The other columns of the data row, handed to the reward as keyword arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns to learn from: every assistant turn is an answer to imitate.

    Example:
        Conversation(id="chat-3", messages=(Message(role="user", content="12+34="),
                                            Message(role="assistant", content="46")))
    """

    id: str
    messages: tuple[Message, ...]


@runtime_checkable
class OnlineData(Protocol):
    """Asks questions; answers are sampled and judged."""

    def questions(self, split: Split) -> Sequence[Question]:
        """In the data set's own order."""
        ...


@runtime_checkable
class OfflineData(Protocol):
    """Shows conversations, which are learned from as they are."""

    def conversations(self, split: Split) -> Sequence[Conversation]:
        """In the data set's own order."""
        ...
