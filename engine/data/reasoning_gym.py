"""reasoning-gym: more than a hundred kinds of puzzles, made as they are asked for, judged by the library itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.data.base import DataError, Question, Split
from engine.data.turns import ask, system
from rewards.reasoning_gym import UnknownTask, make_task

HELD_OUT_SEED = 1_000_000_007
"""Entry i of seed s is entry 0 of seed s + i: held-out entries start where no training entry gets to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningGymData:
    """Puzzles of one task."""

    task: str
    """A name of reasoning-gym's own, such as chain_sum, countdown or knights_knaves."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the task, such as {min_terms:2,max_terms:2}; what is left out is the library's default."""
    rows: int = 2000
    """Different puzzles to learn from."""
    held_out: int = 200
    """Puzzles that are never trained on: a training puzzle that reads the same is left out."""
    seed: int = 0
    instruction: str = ""
    """Written under every question; <answer> tags are read where a response has them."""
    system_prompt: str = ""
    """Said before every question."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}: it must be 1 or more")
        if not 0 <= self.held_out < HELD_OUT_SEED:
            raise ValueError(f"held_out is {self.held_out}: it must be 0 or more")

    def questions(self, split: Split) -> Sequence[Question]:
        held_out = self._entries(Split.HELD_OUT)
        if split is Split.HELD_OUT:
            return [self._question(split, number, entry) for number, entry in enumerate(held_out, start=1)]
        taken = {entry["question"] for entry in held_out}
        return [
            self._question(split, number, entry)
            for number, entry in enumerate(self._entries(split), start=1)
            if entry["question"] not in taken
        ]

    def _entries(self, split: Split) -> Sequence[dict[str, Any]]:
        size, seed = (self.rows, self.seed) if split is Split.TRAIN else (self.held_out, self.seed + HELD_OUT_SEED)
        if size == 0:
            return []
        try:
            puzzles = make_task(self.task, self.settings, size=size, seed=seed)
        except UnknownTask as error:
            raise DataError(str(error), where="data.task", advice="Set data.task and data.settings.") from error
        return [puzzles[index] for index in range(size)]

    def _question(self, split: Split, number: int, entry: dict[str, Any]) -> Question:
        text = f"{entry['question']}\n{self.instruction}" if self.instruction else entry["question"]
        return Question(
            id=f"{self.task}-{split.value}-{number}",
            messages=(*system(self.system_prompt), ask(text)),
            answer=str(entry["answer"]),
            row={"task": self.task, "settings": self.settings, "entry": entry},
            from_text=True,
        )
