"""What an offline stage learns from: rows of a data set as tokens, in the units that must stay together.

    Document, Conversation, Preference, Judged --render--> Lesson --collate--> LessonBatch --loss--> Loss

Suffixes: `B` sequences, `T` token positions of a completion (right-padded).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import numpy as np

from workers.records import Batch, Loss, TokenLogprobs, Totals

if TYPE_CHECKING:
    from torch import Tensor


class Part(Enum):
    """What a sequence is to the lesson that it belongs to."""

    TEXT = "text"
    """To imitate."""
    CHOSEN = "chosen"
    """The better one of two answers."""
    REJECTED = "rejected"
    """The worse one."""
    DESIRABLE = "desirable"
    """An answer that was approved of, by itself."""
    UNDESIRABLE = "undesirable"
    """An answer that was disapproved of, by itself."""
    MISMATCHED = "mismatched"
    """Another lesson's answer behind this lesson's prompt: looked at, never learned from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One sequence, rendered once, with the tokens that are trained on.

    `mask` starts at the first trained token, so `token_ids[:prompt_length]` is context alone. A first token has
    nothing that predicts it: `prompt_length` is at least 1.

    Example:
        Example(part=Part.TEXT, token_ids=(3, 7, 8, 1, 4, 9, 10, 1), prompt_length=5, mask=(True, True, True))
    """

    part: Part
    token_ids: tuple[int, ...]
    prompt_length: int
    mask: tuple[bool, ...]

    @property
    def is_learned_from(self) -> bool:
        return self.part is not Part.MISMATCHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What is learned from as one, and never split between micro-batches: a text, a pair, a judged answer.

    Example:
        Lesson(id="dpo-3", examples=(Example(part=Part.CHOSEN, ...), Example(part=Part.REJECTED, ...)), margin=0.0)
    """

    id: str
    examples: tuple[Example, ...]
    margin: float
    """By how much the chosen one is better, where the data say so (reward models); else 0."""

    @property
    def trained_tokens(self) -> int:
        return sum(sum(example.mask) for example in self.examples if example.is_learned_from)

    @property
    def num_tokens(self) -> int:
        return sum(len(example.token_ids) for example in self.examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonBatch:
    """Lessons as tensors: one row a sequence, the sequences of a lesson next to each other.

    Example (two pairs): rows are chosen 0, rejected 0, chosen 1, rejected 1.
    """

    batch: Batch
    """What the model reads, and which tokens are trained on."""
    parts: tuple[Part, ...]
    """One a row."""
    lesson_B: Tensor
    """int64: which lesson a row belongs to."""
    margin_B: Tensor
    """float32: of the lesson."""
    reference_logprobs_BT: Tensor
    """float32: of the model before the first update; zeros where the objective asked for none."""

    def __len__(self) -> int:
        return len(self.batch)

    def rows(self, part: Part) -> list[int]:
        """Row numbers of a part, in the order of their lessons: those of two parts of a pair match one by one."""
        return [row for row, own in enumerate(self.parts) if own is part]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineNeeds:
    """What an objective asks for beside the rows themselves."""

    reference: bool = False
    """The log-probs of the model as it was before the first update."""
    reference_point: bool = False
    """How far, before an update, the policy is from the reference on the step's mismatched sequences: the mean over
    all ranks of their summed log-ratios."""
    embedding_noise: float = 0.0
    """NEFTune's alpha; 0 is none."""


class LanguageObjective(Protocol):
    """A loss over the log-probs of a data set's own tokens."""

    @property
    def needs(self) -> OfflineNeeds: ...

    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss: ...


class ScoreObjective(Protocol):
    """A loss over one number for each sequence."""

    def loss(self, score_B: Tensor, lessons: LessonBatch, totals: Totals) -> Loss: ...


Objective = LanguageObjective | ScoreObjective


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one rank learns from in one step."""

    lessons: tuple[Lesson, ...]
    reference: tuple[np.ndarray, ...]
    """[T] float32 for each sequence of each lesson, in order; empty where the objective needs no reference."""
