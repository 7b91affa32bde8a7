"""ORPO: imitate the chosen answer and make it likelier than the rejected one, without a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine.algorithms.base import LanguageObjective
from engine.algorithms.preference import (
    Pairs,
    averaged,
    figures_of,
    log_sigmoid,
    logprob_figures,
    mean_over_lessons,
    pairs_of,
    summed,
)
from engine.algorithms.settings import at_least_zero
from engine.data.base import RowKind
from workers.lessons import LessonBatch
from workers.records import Loss, TokenLogprobs, Totals

if TYPE_CHECKING:
    from torch import Tensor

CLOSEST_TO_CERTAIN = -1e-6
"""A mean log-prob nearer to 0 has no odds in float32."""


@dataclass(frozen=True, kw_only=True)
class ORPO(LanguageObjective):
    """Odds Ratio Preference Optimization (2403.07691, Eqs. 6-7).

    With p the geometric mean of an answer's token probabilities and odds(p) = p / (1 - p), the loss of a pair is the
    chosen answer's -log p, plus lambda x -log sigmoid(log odds(p chosen) - log odds(p rejected)). The paper's own code
    imitates the prompt too; here, as Eq. 6 has it, the answer alone.
    """

    rows: ClassVar[RowKind] = RowKind.PREFERENCES

    odds_coef: float = 0.1
    """Lambda: weight of the odds ratio beside imitation."""

    def __post_init__(self) -> None:
        at_least_zero(self, "odds_coef")

    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss:
        logprobs_BT, mask_BT = policy.logprobs_BT, lessons.batch.mask_BT
        mean = pairs_of(averaged(logprobs_BT, mask_BT), lessons)
        odds = Pairs(chosen_P=log_odds(mean.chosen_P), rejected_P=log_odds(mean.rejected_P))
        nll = -mean_over_lessons(mean.chosen_P, totals)
        value = nll - self.odds_coef * mean_over_lessons(log_sigmoid(odds.difference_P), totals)
        rewards = Pairs(chosen_P=self.odds_coef * mean.chosen_P, rejected_P=self.odds_coef * mean.rejected_P)
        return Loss(
            value=value,
            metrics={
                **figures_of(rewards, totals),
                **logprob_figures(pairs_of(summed(logprobs_BT, mask_BT), lessons), totals),
                "nll": nll.detach(),
                "log_odds_ratio": mean_over_lessons(odds.difference_P.detach(), totals),
            },
        )


def log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p."""
    held = logprob.clamp(max=CLOSEST_TO_CERTAIN)
    return held - log1mexp(held)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x < 0, exact near 0 and far from it (Maechler 2012, Eq. 7)."""
    return (-x.expm1()).log().where(x > -math.log(2), (-x.exp()).log1p())
