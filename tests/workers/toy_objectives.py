"""Objectives of ten lines: what the trainers are handed where no algorithm of ours is meant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from workers.lessons import LessonBatch, OfflineNeeds, Part
from workers.records import Loss, TokenLogprobs, Totals


@dataclass(frozen=True)
class Text:
    """Imitates: the mean negative log-probability."""

    noise: float = 0.0

    @property
    def needs(self) -> OfflineNeeds:
        return OfflineNeeds(embedding_noise=self.noise)

    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss:
        value = -policy.logprobs_BT.where(lessons.batch.mask_BT, 0.0).sum() / totals.tokens
        return Loss(value=value, metrics={"nll": value.detach()})


@dataclass(frozen=True)
class Pair:
    """Prefers one answer to the other: their log-probs, compared with those of a reference (2305.18290)."""

    beta: float = 0.1

    @property
    def needs(self) -> OfflineNeeds:
        return OfflineNeeds(reference=True)

    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss:
        ratio_BT = (policy.logprobs_BT - lessons.reference_logprobs_BT).where(lessons.batch.mask_BT, 0.0)
        better, worse = (ratio_BT.sum(dim=-1)[lessons.rows(part)] for part in (Part.CHOSEN, Part.REJECTED))
        value = -logsigmoid(self.beta * (better - worse)).sum() / totals.prompts
        return Loss(value=value, metrics={"right": (better > worse).sum() / totals.prompts})


@dataclass(frozen=True)
class Judged:
    """Approves of an answer as far as it lies beyond what the policy has moved anyway (2402.01306, simplified)."""

    @property
    def needs(self) -> OfflineNeeds:
        return OfflineNeeds(reference=True, reference_point=True)

    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss:
        ratio_BT = (policy.logprobs_BT - lessons.reference_logprobs_BT).where(lessons.batch.mask_BT, 0.0)
        value = -torch.sigmoid(0.1 * (ratio_BT.sum(dim=-1) - reference_point))[lessons.rows(Part.DESIRABLE)].sum()
        point = ratio_BT.new_tensor(reference_point * len(lessons.rows(Part.DESIRABLE)))
        return Loss(value=value / totals.prompts, metrics={"point": point / totals.prompts})


@dataclass(frozen=True)
class Better:
    """Scores one text above the other, by the margin (2307.09288)."""

    def loss(self, score_B: Tensor, lessons: LessonBatch, totals: Totals) -> Loss:
        better, worse = lessons.rows(Part.CHOSEN), lessons.rows(Part.REJECTED)
        value = -logsigmoid(score_B[better] - score_B[worse] - lessons.margin_B[better]).sum() / totals.prompts
        return Loss(value=value, metrics={"nll": value.detach()})
