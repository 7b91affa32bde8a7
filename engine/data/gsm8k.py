"""GSM8K (2110.14168): grade-school word problems whose answer is one number, each with a worked solution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data.base import Conversation, DataError, Question, Split
from engine.data.files import FileRow, read_rows, split_rows
from engine.data.jsonl import ask, system
from workers.records import Message

ANSWER_MARK = "####"
CALCULATION = re.compile(r"<<.*?>>")
"""GSM8K's notes for a calculator, in the middle of its solutions: `48/2 = <<48/2=24>>24`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gsm8kData:
    """Each row has a question and a worked solution, which ends in `#### <answer>`.

    The online algorithms ask the questions; the offline ones imitate the solutions.
    """

    path: str = "openai/gsm8k"
    """A local .jsonl file, or a hub id, whose split `test` is then held out."""
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

    def __post_init__(self) -> None:
        for name, count in (("held_out", self.held_out), ("limit", self.limit), ("shots", self.shots)):
            if count < 0:
                raise ValueError(f"{name} is {count}: it must be 0 or more")

    def questions(self, split: Split) -> Sequence[Question]:
        examples = self._examples()
        rows = self._rows(split)
        return [self._question(row, examples) for row in (rows[self.shots :] if split is Split.TRAIN else rows)]

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
        return tuple(turn for row in train[: self.shots] for turn in self._solved(row))

    def conversations(self, split: Split) -> Sequence[Conversation]:
        return [self._conversation(row) for row in self._rows(split)]

    def _rows(self, split: Split) -> Sequence[FileRow]:
        if not Path(self.path).exists() and Path(self.path).suffix not in (".jsonl", ".json"):
            rows = _rows_of_hub(self.path, "train" if split is Split.TRAIN else "test")
            return rows[: self.limit] if self.limit and split is Split.TRAIN else rows
        rows = read_rows(self.path)
        rows = rows[: self.limit] if self.limit else rows
        held_out_rows = read_rows(self.held_out_path) if self.held_out_path else ()
        return split_rows(rows, split, held_out=self.held_out, held_out_rows=held_out_rows)

    def _question(self, row: FileRow, examples: Sequence[Message]) -> Question:
        solution = row.text(self.answer_column)
        _, mark, final = solution.rpartition(ANSWER_MARK)
        answer = final.strip().replace(",", "")
        if not (mark and answer):
            raise DataError(
                f"column {self.answer_column!r} has no answer after {ANSWER_MARK}.",
                where=row.where,
                advice=f"End the solution in `{ANSWER_MARK} <number>`, or use data=jsonl for plain answers.",
            )
        return Question(
            id=row.id,
            messages=(*system(self.system_prompt), *examples, self._ask(row)),
            answer=answer,
            row=row.others(self.question_column, self.answer_column) | {"solution": solution},
        )

    def _conversation(self, row: FileRow) -> Conversation:
        return Conversation(id=row.id, messages=(*system(self.system_prompt), *self._solved(row)), tools=(), images=())

    def _solved(self, row: FileRow) -> tuple[Message, Message]:
        solution = CALCULATION.sub("", row.text(self.answer_column))
        return self._ask(row), Message(role="assistant", content=solution)

    def _ask(self, row: FileRow) -> Message:
        question = row.text(self.question_column)
        return ask(f"{question}\n{self.instruction}" if self.instruction else question)


def _rows_of_hub(path: str, split: str) -> tuple[FileRow, ...]:
    from datasets import load_dataset  # takes seconds to import, and most runs read a file

    try:
        rows = load_dataset(path, "main", split=split)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be loaded from the hub: {error}",
            where=path,
            advice="Set data.path to a local .jsonl file of GSM8K, or go online.",
        ) from error
    return tuple(
        FileRow(id=f"gsm8k-{split}-{number}", where=f"{path}, {split} row {number}", values=row)
        for number, row in enumerate(rows, start=1)
    )
