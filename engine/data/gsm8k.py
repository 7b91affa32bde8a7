"""GSM8K (2110.14168): grade-school word problems whose answer is one number, each with a worked solution."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from engine.data.bad_rows import BadRows, Tolerance
from engine.data.base import Conversation, DataError, Question, RowKind, Split
from engine.data.readers import READERS, read_hub
from engine.data.rows import FileRow, RowOrError
from engine.data.sources import find_source
from engine.data.turns import ask, system
from workers.records import Message

T = TypeVar("T")
ANSWER_MARK = "####"
CALCULATION = re.compile(r"<<.*?>>")
"""GSM8K's notes for a calculator, in the middle of its solutions: `48/2 = <<48/2=24>>24`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gsm8kData:
    """Each row has a question and a worked solution, which ends in `#### <answer>`.

    The online algorithms ask the questions; the offline ones imitate the solutions.
    """

    path: str = "openai/gsm8k"
    """A local file, or a hub id, whose split `test` is then held out."""
    question_column: str = "question"
    answer_column: str = "answer"
    held_out: int = 200
    """A local file's last rows, which are never trained on; unless held_out_path is set."""
    held_out_path: str = ""
    """A local file of its own to evaluate on, such as GSM8K's test.jsonl."""
    instruction: str = "Reason step by step, and give the final answer in \\boxed{} or after ####."
    """Written under every question."""
    system_prompt: str = ""
    """Said before every question."""
    shots: int = 0
    """Solved examples shown before every question: the first rows, which are then not trained on."""
    limit: int = 0
    """Only the first rows to train on or to hold out from; 0 takes all."""
    check: bool = False
    """Only read every row, tell all bad ones and end: exit code 2 where there are any, else 0."""

    def __post_init__(self) -> None:
        for name, count in (("held_out", self.held_out), ("limit", self.limit), ("shots", self.shots)):
            if count < 0:
                raise ValueError(f"{name} is {count}: it must be 0 or more")

    def questions(self, split: Split) -> Sequence[Question]:
        examples = self._examples()
        rows = self._rows(split)[self.shots if split is Split.TRAIN else 0 :]
        return self._all(rows, lambda row: self._question(row, examples))

    def conversations(self, split: Split) -> Sequence[Conversation]:
        return self._all(self._rows(split), self._conversation)

    def described(self, kind: RowKind) -> tuple[str, ...]:
        """What was found, for people."""
        counts = {split: len(self._rows(split)) for split in Split}
        return (f"{self.path}: {counts[Split.TRAIN]:,} rows, and {counts[Split.HELD_OUT]:,} held out",)

    def places(self, ids: Collection[str]) -> Mapping[str, str]:
        """Of rows, by their ids: file and line."""
        rows = [row for split in Split for row in self._rows(split) if isinstance(row, FileRow)]
        return {row.id: row.where for row in rows if row.id in ids}

    @property
    def tolerance(self) -> Tolerance:
        """One bad row ends the run."""
        return Tolerance(tell_all=self.check)

    def bad(self, kind: RowKind) -> BadRows:
        """None is left out."""
        return BadRows(self.tolerance)

    def _all(self, rows: Sequence[RowOrError], make: Callable[[FileRow], T]) -> Sequence[T]:
        """Raises DataError, which tells every row that is bad."""
        bad = BadRows(self.tolerance)
        made = list(bad.collect(rows, make))
        bad.settle()
        return made

    def _examples(self) -> tuple[Message, ...]:
        """The turns that every question comes after."""
        if not self.shots:
            return ()
        train = self._rows(Split.TRAIN)
        if self.shots >= len(train):
            raise DataError(
                f"{len(train)} rows to train on, and data.shots is {self.shots}: none are left.",
                where=self.path,
                advice="Set a smaller data.shots.",
            )
        return tuple(turn for pair in self._all(train[: self.shots], self._solved) for turn in pair)

    def _rows(self, split: Split) -> Sequence[RowOrError]:
        if not Path(self.path).exists() and Path(self.path).suffix not in READERS:
            hub_split = "train" if split is Split.TRAIN else "test"
            rows = list(read_hub(self.path, subset="main", split=hub_split, folder="", streaming=False))
            return rows[: self.limit] if self.limit and split is Split.TRAIN else rows
        rows = _rows_of_file(self.path)
        rows = rows[: self.limit] if self.limit else rows
        if self.held_out_path:
            return rows if split is Split.TRAIN else _rows_of_file(self.held_out_path)
        if self.held_out >= len(rows):
            raise DataError(
                f"{len(rows)} rows, and data.held_out is {self.held_out}: none are left to train on.",
                where=self.path,
                advice="Set a smaller data.held_out.",
            )
        cut = len(rows) - self.held_out
        return rows[:cut] if split is Split.TRAIN else rows[cut:]

    def _question(self, row: FileRow, examples: Sequence[Message]) -> Question:
        solution = row.text(self.answer_column)
        _, mark, final = solution.rpartition(ANSWER_MARK)
        answer = final.strip().replace(",", "")
        if not (mark and answer):
            raise row.bad(
                f"no answer after {ANSWER_MARK}",
                self.answer_column,
                solution,
                f"End the solution in `{ANSWER_MARK} <number>`, or use data=files for plain answers.",
            )
        return Question(
            id=row.id,
            messages=(*system(self.system_prompt), *examples, self._ask(row)),
            answer=answer,
            row=row.others(self.question_column, self.answer_column) | {"solution": solution},
            from_text=True,
        )

    def _conversation(self, row: FileRow) -> Conversation:
        return Conversation(id=row.id, messages=(*system(self.system_prompt), *self._solved(row)), tools=(), images=())

    def _solved(self, row: FileRow) -> tuple[Message, Message]:
        solution = CALCULATION.sub("", row.text(self.answer_column))
        return self._ask(row), Message(role="assistant", content=solution)

    def _ask(self, row: FileRow) -> Message:
        question = row.text(self.question_column)
        return ask(f"{question}\n{self.instruction}" if self.instruction else question)


def _rows_of_file(path: str) -> list[RowOrError]:
    rows = list(find_source(path).rows(streaming=False))
    if not rows:
        raise DataError("no rows.", where=path, advice="Give a file with one JSON object per line.")
    return rows
