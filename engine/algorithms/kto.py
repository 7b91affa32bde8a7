"""KTO: learns from single answers that were approved of or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from engine.algorithms.base import LanguageObjective
from engine.algorithms.preference import mean_over_lessons, summed
from engine.algorithms.settings import above_zero, at_least_zero
from engine.data.base import DataError, RowKind
from workers.lessons import Example, Lesson, LessonBatch, OfflineNeeds, Part
from workers.records import Loss, TokenLogprobs, Totals


@dataclass(frozen=True, kw_only=True)
class KTO(LanguageObjective):
    """Kahneman-Tversky Optimization (2402.01306, Eq. 7): an answer is worth what it gains over a reference point.

    With h = log(policy / reference) of an answer, its loss is w_D (1 - sigmoid(beta (h - z0))) if it is desirable, and
    w_U (1 - sigmoid(beta (z0 - h))) if not. The reference point z0 is how far the policy is from the reference by
    itself: the mean h of prompts with another prompt's answer, at least 0, without gradient.

    z0 is that of the whole optimizer step, on all ranks and before the update. The authors' code and its descendants
    take each micro-batch's own, which makes the loss depend on how the step is cut; here it does not.
    """

    rows: ClassVar[RowKind] = RowKind.JUDGED
    min_lessons: ClassVar[int] = 2

    beta: float = 0.1
    """How dear it is to leave the reference."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    """Desirable weight x number of desirable answers, over the same of the others, wants to be 1 to 4/3 (Eq. 8)."""

    def __post_init__(self) -> None:
        above_zero(self, "beta")
        at_least_zero(self, "desirable_weight", "undesirable_weight")

    @property
    def needs(self) -> OfflineNeeds:
        return OfflineNeeds(reference=True, reference_point=True)

    def assemble(self, lessons: Sequence[Lesson]) -> list[Lesson]:
        """Beside each lesson's answer, its prompt with the answer of the lesson before it.

        Going round, each answer stands behind exactly one other prompt: the reference point is taken on the very
        answers that are learned from.
        """
        if len(lessons) == 1:
            raise DataError(
                "it stands alone, and KTO puts each prompt beside another row's answer.",
                where=lessons[0].id,
                advice="Learn from (and hold out) at least 2 rows at a time.",
            )
        longest = max((len(example.token_ids) for lesson in lessons for example in lesson.examples), default=0)
        before = [*lessons[-1:], *lessons[:-1]]
        return [
            replace(own, examples=(*own.examples, _mismatched(own.examples[0], other.examples[0], longest)))
            for own, other in zip(lessons, before, strict=True)
        ]

    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss:
        ratio_BT = policy.logprobs_BT - lessons.reference_logprobs_BT
        ratio_B = summed(ratio_BT, lessons.batch.mask_BT)
        point = max(0.0, reference_point)
        desirable, undesirable = (ratio_B[lessons.rows(part)] for part in (Part.DESIRABLE, Part.UNDESIRABLE))
        gain, loss_averted = self.beta * (desirable - point), self.beta * (point - undesirable)
        value = self.desirable_weight * mean_over_lessons(1 - gain.sigmoid(), totals)
        value = value + self.undesirable_weight * mean_over_lessons(1 - loss_averted.sigmoid(), totals)
        right = sum(mean_over_lessons((side > 0).to(side.dtype), totals) for side in (gain, loss_averted))
        return Loss(
            value=value,
            metrics={
                "accuracy": right,
                "reference_point": mean_over_lessons(ratio_B.new_full((len(gain) + len(loss_averted),), point), totals),
                "desirable_share": mean_over_lessons(ratio_B.new_ones(len(desirable)), totals),
                "summed_rewards/desirable": mean_over_lessons(self.beta * desirable.detach(), totals),
                "summed_rewards/undesirable": mean_over_lessons(self.beta * undesirable.detach(), totals),
            },
        )


def _mismatched(asked: Example, answered: Example, longest: int) -> Example:
    """The prompt of one, the completion of the other: no longer than the longest that there is."""
    prompt = asked.token_ids[: asked.prompt_length]
    room = longest - len(prompt)
    return Example(
        part=Part.MISMATCHED,
        token_ids=(*prompt, *answered.token_ids[answered.prompt_length :][:room]),
        prompt_length=len(prompt),
        mask=answered.mask[:room],
    )
