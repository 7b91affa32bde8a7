"""SimPO: DPO with the mean log-prob as the reward, a target margin, and no reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from engine.algorithms.base import LanguageObjective
from engine.algorithms.preference import (
    Pairs,
    averaged,
    figures_of,
    logprob_figures,
    mean_over_lessons,
    pairs_of,
    preference_loss,
    summed,
)
from engine.algorithms.settings import above_zero, at_least_zero, below_half
from engine.data.base import RowKind
from workers.lessons import LessonBatch
from workers.records import Loss, TokenLogprobs, Totals


@dataclass(frozen=True, kw_only=True)
class SimPO(LanguageObjective):
    """Simple Preference Optimization (2405.14734, Eq. 6): -log sigmoid(reward chosen - reward rejected - gamma), an
    answer's reward being beta x the mean log-prob of its tokens, which is what generation goes by."""

    rows: ClassVar[RowKind] = RowKind.PREFERENCES

    beta: float = 2.5
    gamma_beta_ratio: float = 0.55
    """Gamma / beta, as the authors tune it: the margin in nats a token. With beta 2.5, 0.55 is a gamma of 1.375."""
    label_smoothing: float = 0.0
    """The share of pairs that are labelled the wrong way round."""

    def __post_init__(self) -> None:
        above_zero(self, "beta")
        at_least_zero(self, "gamma_beta_ratio")
        below_half(self, "label_smoothing")

    @property
    def gamma(self) -> float:
        return self.beta * self.gamma_beta_ratio

    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss:
        logprobs_BT, mask_BT = policy.logprobs_BT, lessons.batch.mask_BT
        mean = pairs_of(averaged(logprobs_BT, mask_BT), lessons)
        rewards = Pairs(chosen_P=self.beta * mean.chosen_P, rejected_P=self.beta * mean.rejected_P)
        loss_P = preference_loss(rewards.difference_P - self.gamma, label_smoothing=self.label_smoothing)
        return Loss(
            value=mean_over_lessons(loss_P, totals),
            metrics={
                **figures_of(rewards, totals),
                **logprob_figures(pairs_of(summed(logprobs_BT, mask_BT), lessons), totals),
            },
        )
