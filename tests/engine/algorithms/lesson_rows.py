"""Small batches of lessons for the tests of the offline losses, in float64.

Suffixes: `B` sequences, `T` token positions of a completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from loss_rows import doubles
from torch import Tensor
from torch.nn.functional import pad

from engine.algorithms.base import LanguageObjective
from workers.lessons import LessonBatch, Part
from workers.records import Batch, Loss, TokenLogprobs, Totals

PAIR = (Part.CHOSEN, Part.REJECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonRows:
    """What a loss reads of lessons, as plain tensors that a test may cut, permute, pad and spoil."""

    parts: tuple[Part, ...]
    lesson_B: Tensor
    mask_BT: Tensor
    logprobs_BT: Tensor
    reference_BT: Tensor
    margin_B: Tensor

    def at(self, rows: Sequence[int]) -> LessonRows:
        index = torch.tensor(rows, dtype=torch.long)
        tensors = {name: getattr(self, name)[index] for name in self.__slots__ if name != "parts"}
        return LessonRows(parts=tuple(self.parts[row] for row in rows), **tensors)

    def lessons_at(self, lessons: Sequence[int]) -> LessonRows:
        return self.at([row for lesson in lessons for row in (self.lesson_B == lesson).nonzero().flatten().tolist()])

    def spoiled(self, value: float, *, width: int = 2) -> LessonRows:
        """`width` more columns, and `value` wherever no token is trained on."""
        mask_BT = pad(self.mask_BT, (0, width), value=False)
        wider = {name: pad(getattr(self, name), (0, width)) for name in ("logprobs_BT", "reference_BT")}
        spoiled = {name: tensor.masked_fill(~mask_BT, value) for name, tensor in wider.items()}
        return replace(self, mask_BT=mask_BT, **spoiled)

    def batch(self) -> LessonBatch:
        size, width = self.mask_BT.shape
        zeros_BT = torch.zeros(size, width, dtype=torch.long)
        return LessonBatch(
            batch=Batch(
                context=tuple(torch.zeros(2 + width, dtype=torch.long) for _ in range(size)),
                prompt_lengths=(2,) * size,
                prompts=tuple(range(size)),
                token_ids_BT=zeros_BT,
                mask_BT=self.mask_BT,
                rollout_logprobs_BT=zeros_BT.double(),
                version_BT=zeros_BT,
                reward_B=torch.zeros(size, dtype=torch.float64),
                prompt_tokens_B=self.mask_BT.sum(dim=-1),
            ),
            parts=self.parts,
            lesson_B=self.lesson_B,
            margin_B=self.margin_B,
            reference_logprobs_BT=self.reference_BT,
        )

    def totals(self) -> Totals:
        return Totals(
            tokens=int(self.mask_BT.sum()),
            sequences=int(self.mask_BT.any(dim=-1).sum()),
            prompts=len(set(self.lesson_B.tolist())),
            horizon=8,
        )

    def num_lessons(self) -> int:
        return len(set(self.lesson_B.tolist()))


def loss_of(objective: LanguageObjective, rows: LessonRows, totals: Totals, *, point: float = 0.0) -> Loss:
    policy = TokenLogprobs(logprobs_BT=rows.logprobs_BT, entropy_BT=torch.zeros_like(rows.logprobs_BT))
    return objective.loss(policy, rows.batch(), totals, point)


def figures(loss: Loss) -> dict[str, float]:
    return {"value": loss.value.item()} | {name: metric.item() for name, metric in loss.metrics.items()}


def gradient(value_of: Callable[[LessonRows], Tensor], rows: LessonRows) -> Tensor:
    leaf = rows.logprobs_BT.clone().requires_grad_()
    [found] = torch.autograd.grad(value_of(replace(rows, logprobs_BT=leaf)), leaf)
    return found


def rows_of(
    parts: Sequence[Part], lengths: Sequence[int], sums: Sequence[float], reference_sums: Sequence[float]
) -> LessonRows:
    """Rows with these summed log-probs, spread evenly over their tokens; each pair, or each single row, a lesson."""
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
    per_token = [
        doubles(values).unsqueeze(-1) / torch.tensor(lengths).unsqueeze(-1) for values in (sums, reference_sums)
    ]
    logprobs_BT, reference_BT = (tokens.expand(mask_BT.shape).where(mask_BT, 0.0) for tokens in per_token)
    in_pairs = parts[0] is Part.CHOSEN
    return LessonRows(
        parts=tuple(parts),
        lesson_B=torch.arange(len(parts)) // (2 if in_pairs else 1),
        mask_BT=mask_BT,
        logprobs_BT=logprobs_BT,
        reference_BT=reference_BT,
        margin_B=torch.zeros(len(parts), dtype=torch.float64),
    )


def golden_pairs() -> LessonRows:
    """Chosen answers of -10 in 5 tokens and -20 in 8, rejected ones of -12 in 6 and -18 in 6."""
    return rows_of(PAIR * 2, (5, 6, 8, 6), (-10.0, -12.0, -20.0, -18.0), (-11.0, -11.5, -19.0, -19.5))


def golden_judged() -> LessonRows:
    parts = (Part.DESIRABLE, Part.UNDESIRABLE, Part.DESIRABLE)
    return rows_of(parts, (4, 5, 3), (-10.0, -20.0, -8.0), (-11.0, -19.0, -8.5))


def random_rows(parts: Sequence[Part], *, seed: int = 7) -> LessonRows:
    """Rows of 1 to 6 trained tokens, with gaps where a turn that is not trained on lies in between."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = len(parts)
    mask_BT = torch.arange(7) < torch.randint(1, 8, (size, 1), generator=generator)
    mask_BT[::3, 2] = False
    logprobs_BT = -draw(size, 7).abs() - 0.05
    return LessonRows(
        parts=tuple(parts),
        lesson_B=torch.arange(size) // (2 if parts[0] is Part.CHOSEN else 1),
        mask_BT=mask_BT,
        logprobs_BT=logprobs_BT,
        reference_BT=logprobs_BT + 0.3 * draw(size, 7),
        margin_B=draw(size).abs(),
    )


def each_alone(objective: LanguageObjective, rows: LessonRows, *, point: float = 0.0) -> Tensor:
    """The loss of each lesson by itself, as if it were the whole step."""
    alone = [rows.lessons_at([lesson]) for lesson in range(rows.num_lessons())]
    return torch.stack([loss_of(objective, one, one.totals(), point=point).value for one in alone])
