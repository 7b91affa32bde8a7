"""What losses over two answers share: each answer as one number, and how sure one can be that the better one is better.

Suffixes: `B` sequences, `T` token positions of a completion, `P` pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.lessons import LessonBatch, Part
from workers.records import Totals

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """One number for each answer of each pair of a micro-batch.

    Example (log-ratios of two pairs):
        Pairs(chosen_P=[1.0, -1.0], rejected_P=[-0.5, 1.5])
    """

    chosen_P: Tensor
    rejected_P: Tensor

    @property
    def difference_P(self) -> Tensor:
        return self.chosen_P - self.rejected_P


def pairs_of(value_B: Tensor, lessons: LessonBatch) -> Pairs:
    """A number of each row, as pairs; none in a micro-batch without lessons."""
    return Pairs(chosen_P=value_B[lessons.rows(Part.CHOSEN)], rejected_P=value_B[lessons.rows(Part.REJECTED)])


def summed(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B]: over the trained tokens. Masked positions do not count, whatever they hold."""
    return value_BT.masked_fill(~mask_BT, 0.0).sum(dim=-1)


def averaged(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B]: the mean over a row's trained tokens."""
    return summed(value_BT, mask_BT) / mask_BT.sum(dim=-1).clamp(min=1)


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + exp(-x))), which neither overflows nor loses its gradient."""
    return -(-x).logaddexp(x.new_zeros(()))


def preference_loss(margin_P: Tensor, *, label_smoothing: float) -> Tensor:
    """How surprising it is that the chosen answer won, when it wins with probability sigmoid(margin) and a share
    `label_smoothing` of the labels is the wrong way round (cDPO)."""
    won, lost = log_sigmoid(margin_P), log_sigmoid(-margin_P)
    return -(1 - label_smoothing) * won - label_smoothing * lost


def mean_over_lessons(value: Tensor, totals: Totals) -> Tensor:
    """The contribution of some lessons to the mean over all lessons of the step."""
    return value.sum() / max(totals.prompts, 1)


def figures_of(rewards: Pairs, totals: Totals) -> Mapping[str, Tensor]:
    """What people look at: how often the chosen answer is worth more than the rejected one (a tie is no success), and
    by how much."""
    chosen_P, rejected_P = rewards.chosen_P.detach(), rewards.rejected_P.detach()
    return {
        "accuracy": mean_over_lessons((chosen_P > rejected_P).to(chosen_P.dtype), totals),
        "margin": mean_over_lessons(chosen_P - rejected_P, totals),
        "rewards/chosen": mean_over_lessons(chosen_P, totals),
        "rewards/rejected": mean_over_lessons(rejected_P, totals),
    }


def logprob_figures(logprobs: Pairs, totals: Totals) -> Mapping[str, Tensor]:
    """Mean log-probs of whole answers: both may fall while their difference grows."""
    return {
        "logps/chosen": mean_over_lessons(logprobs.chosen_P.detach(), totals),
        "logps/rejected": mean_over_lessons(logprobs.rejected_P.detach(), totals),
    }
