"""Reward model: a number for each answer, such that the better one of two gets more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine.algorithms.base import ScoreObjective
from engine.algorithms.preference import figures_of, mean_over_lessons, pairs_of, preference_loss
from engine.algorithms.settings import at_least_zero
from engine.data.base import RowKind
from workers.lessons import LessonBatch, Part
from workers.records import Loss, Totals

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RM(ScoreObjective):
    """Bradley-Terry: -log sigmoid(r_chosen - r_rejected - margin) (2203.02155, Eq. 1; the margin, 2307.09288, Eq. 2).

    Only differences matter to it, so scores may drift together; centering holds their sum near 0.
    """

    rows: ClassVar[RowKind] = RowKind.PREFERENCES

    center_coef: float = 0.0
    """Weight of (r_chosen + r_rejected) squared (2312.09244); 0.01 is usual, 0 is none."""

    def __post_init__(self) -> None:
        at_least_zero(self, "center_coef")

    def loss(self, score_B: Tensor, lessons: LessonBatch, totals: Totals) -> Loss:
        scores = pairs_of(score_B, lessons)
        margin_P = lessons.margin_B[lessons.rows(Part.CHOSEN)]
        loss_P = preference_loss(scores.difference_P - margin_P, label_smoothing=0.0)
        if self.center_coef:
            loss_P = loss_P + self.center_coef * (scores.chosen_P + scores.rejected_P).square()
        return Loss(value=mean_over_lessons(loss_P, totals), metrics=figures_of(scores, totals))
