"""Continued pre-training: make texts more likely, as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.algorithms.aggregation import Aggregation, aggregate, token_mean
from engine.algorithms.base import LanguageObjective
from engine.data.base import RowKind
from workers.lessons import LessonBatch
from workers.records import Loss, TokenLogprobs, Totals


@dataclass(frozen=True, kw_only=True)
class PT(LanguageObjective):
    """The mean negative log-probability of the tokens that are trained on, in nats.

    Every trained token of the optimizer step weighs the same, so a long text counts for more than a short one.
    """

    rows: ClassVar[RowKind] = RowKind.DOCUMENTS

    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss:
        batch = lessons.batch
        value = aggregate(-policy.logprobs_BT, batch, totals, Aggregation.TOKEN_MEAN)
        return Loss(
            value=value,
            metrics={"nll": value.detach(), "entropy": token_mean(policy.entropy_BT, batch, totals)},
        )
