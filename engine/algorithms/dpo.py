"""DPO: the policy is its own reward model, and learns from pairs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
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
    preference_loss,
    summed,
)
from engine.algorithms.settings import InvalidSetting, above_zero, at_least_zero, below_half, share_of_one
from engine.data.base import RowKind
from workers.lessons import LessonBatch, OfflineNeeds, Part
from workers.records import Loss, TokenLogprobs, Totals

if TYPE_CHECKING:
    from torch import Tensor


class LossType(Enum):
    """What is made of h, by how much more the policy prefers the chosen answer than the reference does."""

    SIGMOID = "sigmoid"
    """-log sigmoid(beta h) (2305.18290, Eq. 7); with `label_smoothing`, cDPO: a share of the labels is wrong."""
    ROBUST = "robust"
    """The same, unbiased although a share `label_smoothing` of the labels is wrong (2403.00409)."""
    HINGE = "hinge"
    """max(0, 1 - beta h) (2309.06657): nothing more is learned from a pair beyond its margin."""
    IPO = "ipo"
    """(h - 1 / (2 beta)) squared (2310.12036, Eq. 17): a pair that is sure gets no surer."""


class Reduction(Enum):
    """From the log-ratios of an answer's tokens to the answer's."""

    AUTO = "auto"
    """Their mean for ipo, as its authors do it; their sum otherwise."""
    SUM = "sum"
    MEAN = "mean"
    """A long answer weighs no more than a short one."""


@dataclass(frozen=True, kw_only=True)
class DPO(LanguageObjective):
    """Direct Preference Optimization (2305.18290, Eq. 7), and what differs from it by one term.

    An answer's reward is beta x log(policy / reference), and the better one of two wins with probability
    sigmoid(reward of the chosen - reward of the rejected).
    """

    rows: ClassVar[RowKind] = RowKind.PREFERENCES

    beta: float = 0.1
    """How dear it is to leave the reference."""
    loss_type: LossType = LossType.SIGMOID
    label_smoothing: float = 0.0
    """sigmoid, robust: the share of pairs that are labelled the wrong way round."""
    reduction: Reduction = Reduction.AUTO
    sft_coef: float = 0.0
    """Weight of the chosen answers' negative log-probability: mean over answers of the mean over their tokens."""
    length_desensitization: float = 1.0
    """LD-DPO's alpha (2409.06411): the weight of the tokens by which an answer is longer than the other; 1 is DPO."""

    def __post_init__(self) -> None:
        above_zero(self, "beta")
        at_least_zero(self, "sft_coef")
        share_of_one(self, "length_desensitization")
        smoothed = self.loss_type in (LossType.SIGMOID, LossType.ROBUST)
        below_half(self, "label_smoothing")
        if self.label_smoothing and not smoothed:
            raise InvalidSetting(
                f"label_smoothing is {self.label_smoothing}, and loss_type={self.loss_type.value} knows none: "
                "set it to 0, or choose loss_type=sigmoid or robust"
            )

    @property
    def needs(self) -> OfflineNeeds:
        return OfflineNeeds(reference=True)

    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss:
        logprobs_BT, mask_BT = policy.logprobs_BT, lessons.batch.mask_BT
        ratios = self._log_ratios(logprobs_BT, lessons)
        value = mean_over_lessons(self._loss_of(ratios.difference_P), totals)
        rewards = Pairs(chosen_P=self.beta * ratios.chosen_P, rejected_P=self.beta * ratios.rejected_P)
        metrics = {
            **figures_of(rewards, totals),
            **logprob_figures(pairs_of(summed(logprobs_BT, mask_BT), lessons), totals),
        }
        if self.sft_coef:
            nll = -mean_over_lessons(pairs_of(averaged(logprobs_BT, mask_BT), lessons).chosen_P, totals)
            value = value + self.sft_coef * nll
            metrics["nll"] = nll.detach()
        return Loss(value=value, metrics=metrics)

    def _log_ratios(self, logprobs_BT: Tensor, lessons: LessonBatch) -> Pairs:
        mask_BT = lessons.batch.mask_BT
        # The difference first: where the policy is the reference it is exactly 0, and so is every margin.
        ratio_BT = (logprobs_BT - lessons.reference_logprobs_BT).masked_fill(~mask_BT, 0.0)
        if self.length_desensitization != 1:
            ratio_BT = ratio_BT * self._weights(lessons)
        mean = self.reduction is Reduction.MEAN or (self.reduction is Reduction.AUTO and self.loss_type is LossType.IPO)
        return pairs_of((averaged if mean else summed)(ratio_BT, mask_BT), lessons)

    def _weights(self, lessons: LessonBatch) -> Tensor:
        """[B, T] 1 for as many tokens as both answers of the pair have, alpha for those beyond."""
        mask_BT = lessons.batch.mask_BT
        length_B = mask_BT.sum(dim=-1)
        lengths, shorter_B = pairs_of(length_B, lessons), length_B.clone()
        for part in (Part.CHOSEN, Part.REJECTED):
            shorter_B[lessons.rows(part)] = lengths.chosen_P.minimum(lengths.rejected_P)
        beyond_BT = mask_BT.cumsum(dim=-1) > shorter_B.unsqueeze(-1)
        return lessons.reference_logprobs_BT.new_ones(mask_BT.shape).masked_fill(beyond_BT, self.length_desensitization)

    def _loss_of(self, difference_P: Tensor) -> Tensor:
        margin_P, wrong = self.beta * difference_P, self.label_smoothing
        match self.loss_type:
            case LossType.SIGMOID:
                return preference_loss(margin_P, label_smoothing=wrong)
            case LossType.ROBUST:
                right = (1 - wrong) * log_sigmoid(margin_P) - wrong * log_sigmoid(-margin_P)
                return -right / (1 - 2 * wrong)
            case LossType.HINGE:
                return (1 - margin_P).clamp(min=0)
            case LossType.IPO:
                return (difference_P - 1 / (2 * self.beta)).square()
