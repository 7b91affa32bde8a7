"""SFT: make the data set's own answers more likely."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from engine.algorithms.pt import PT
from engine.algorithms.settings import at_least_zero
from engine.data.base import Imitated, RowKind
from workers.lessons import OfflineNeeds


class Turns(Enum):
    """Which of the assistant's turns are imitated."""

    ALL = "all"
    LAST = "last"
    """The others are context."""


@dataclass(frozen=True, kw_only=True)
class SFT(PT):
    """Supervised fine-tuning: the loss of pre-training, on the assistant's turns and their end tokens alone."""

    rows: ClassVar[RowKind] = RowKind.CONVERSATIONS

    turns: Turns = Turns.ALL
    train_on_prompt: bool = False
    """Whether everything else of a conversation is learned, too."""
    neftune_alpha: float = 0.0
    """Noise on the embeddings while learning, uniform in +- alpha / sqrt(tokens x hidden size) (2310.05914, Algorithm
    1); 0 is none, the paper takes 5 to 15."""

    def __post_init__(self) -> None:
        at_least_zero(self, "neftune_alpha")

    @property
    def imitated(self) -> Imitated:
        return Imitated(last_answer_only=self.turns is Turns.LAST, prompt_too=self.train_on_prompt)

    @property
    def needs(self) -> OfflineNeeds:
        return OfflineNeeds(embedding_noise=self.neftune_alpha)
