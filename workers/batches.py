"""Scored groups to tensors, and batches to micro-batches of a token budget.

The loss never sees how rows were cut: every micro-batch's contribution is divided by the same totals.
Suffixes: `B` rows, `T` token positions of a response.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from workers.lessons import Lesson, LessonBatch, Part
from workers.records import Batch, Credit, Experience, Group, ModelOutputs, Row


def collate(rows: Sequence[Row], groups: Iterable[Group]) -> Batch:
    """Rows, in their order, as one right-padded batch. Raises KeyError when a row's group is not among `groups`."""
    by_draw = {group.draw: group for group in groups}
    rollouts = [by_draw[row.draw].rollouts[row.sample] for row in rows]
    # torch.tensor copies: what comes out of Ray's object store must not be written to.
    responses = [torch.tensor(rollout.token_ids, dtype=torch.long) for rollout in rollouts]
    prompts = [torch.tensor(rollout.prompt.token_ids, dtype=torch.long) for rollout in rollouts]
    return Batch(
        context=tuple(torch.cat(pair) for pair in zip(prompts, responses, strict=True)),
        prompt_lengths=tuple(len(prompt) for prompt in prompts),
        token_ids_BT=_pad(responses, torch.long),
        mask_BT=_pad([torch.tensor(rollout.action_mask()) for rollout in rollouts], torch.bool),
        rollout_logprobs_BT=_pad([torch.tensor(rollout.logprobs) for rollout in rollouts], torch.float32),
        version_BT=_pad([torch.tensor(rollout.versions()) for rollout in rollouts], torch.long),
        reward_B=torch.tensor([row.reward for row in rows], dtype=torch.float32),
        prompt_tokens_B=torch.tensor([row.prompt_tokens for row in rows], dtype=torch.long),
    )


def collate_lessons(lessons: Sequence[Lesson], reference: Sequence[np.ndarray]) -> LessonBatch:
    """Lessons of an offline stage, their sequences one after the other: nobody sampled or judged them.

    `reference` has [T] log-probs for each sequence, in that order; empty where nothing was asked.
    """
    examples = [(number, lesson, example) for number, lesson in enumerate(lessons) for example in lesson.examples]
    context = tuple(torch.tensor(example.token_ids, dtype=torch.long) for *_, example in examples)
    prompt_lengths = tuple(example.prompt_length for *_, example in examples)
    mask_BT = _pad([torch.tensor(example.mask, dtype=torch.bool) for *_, example in examples], torch.bool)
    batch = Batch(
        context=context,
        prompt_lengths=prompt_lengths,
        token_ids_BT=_pad(
            [tokens[prompt:] for tokens, prompt in zip(context, prompt_lengths, strict=True)], torch.long
        ),
        mask_BT=mask_BT,
        rollout_logprobs_BT=torch.zeros(mask_BT.shape),
        version_BT=torch.zeros(mask_BT.shape, dtype=torch.long),
        reward_B=torch.zeros(len(examples)),
        prompt_tokens_B=mask_BT.sum(dim=-1),
    )
    said = [torch.tensor(logprobs, dtype=torch.float32) for logprobs in reference]
    return LessonBatch(
        batch=batch,
        parts=tuple(example.part for *_, example in examples),
        lesson_B=torch.tensor([number for number, *_ in examples], dtype=torch.long),
        margin_B=torch.tensor([lesson.margin for _, lesson, _ in examples], dtype=torch.float32),
        reference_logprobs_BT=_pad(said, torch.float32) if said else torch.zeros(mask_BT.shape),
    )


def append_blank_lesson(lessons: LessonBatch) -> LessonBatch:
    """See `append_blank`."""
    return LessonBatch(
        batch=append_blank(lessons.batch),
        parts=(*lessons.parts, Part.TEXT),
        lesson_B=torch.cat([lessons.lesson_B, lessons.lesson_B.new_full((1,), -1)]),
        margin_B=torch.cat([lessons.margin_B, lessons.margin_B.new_zeros(1)]),
        reference_logprobs_BT=pad_with_blank(lessons.reference_logprobs_BT),
    )


def lessons_on_device(lessons: LessonBatch, device: torch.device) -> LessonBatch:
    """See `on_device`."""
    return replace(
        lessons,
        batch=on_device(lessons.batch, device),
        lesson_B=lessons.lesson_B.to(device),
        margin_B=lessons.margin_B.to(device),
        reference_logprobs_BT=lessons.reference_logprobs_BT.to(device),
    )


def select_lessons(lessons: LessonBatch, rows: Sequence[int]) -> LessonBatch:
    """Some rows of a batch of lessons, no wider than their longest completion."""
    batch = select(lessons.batch, rows)
    index = torch.tensor(rows, dtype=torch.long)
    return LessonBatch(
        batch=batch,
        parts=tuple(lessons.parts[row] for row in rows),
        lesson_B=lessons.lesson_B[index],
        margin_B=lessons.margin_B[index],
        reference_logprobs_BT=lessons.reference_logprobs_BT[index, : batch.mask_BT.shape[1]],
    )


def units_of(lessons: LessonBatch, rows: Sequence[int]) -> list[tuple[int, ...]]:
    """The rows by the lesson that they belong to: what a micro-batch must not split."""
    number = lessons.lesson_B.tolist()
    return [tuple(group) for _, group in itertools.groupby(rows, key=lambda row: number[row])]


def append_blank(batch: Batch) -> Batch:
    """The batch with one more row that trains nothing: a rank that has run out of micro-batches passes it instead."""
    return Batch(
        context=(*batch.context, torch.zeros(2, dtype=torch.long)),
        prompt_lengths=(*batch.prompt_lengths, 1),
        token_ids_BT=pad_with_blank(batch.token_ids_BT),
        mask_BT=pad_with_blank(batch.mask_BT),
        rollout_logprobs_BT=pad_with_blank(batch.rollout_logprobs_BT),
        version_BT=pad_with_blank(batch.version_BT),
        reward_B=torch.cat([batch.reward_B, batch.reward_B.new_zeros(1)]),
        prompt_tokens_B=torch.cat([batch.prompt_tokens_B, batch.prompt_tokens_B.new_zeros(1)]),
    )


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The tensors that a loss reads, where the model computes; `context` moves a micro-batch at a time."""
    return replace(
        batch,
        token_ids_BT=batch.token_ids_BT.to(device),
        mask_BT=batch.mask_BT.to(device),
        rollout_logprobs_BT=batch.rollout_logprobs_BT.to(device),
        version_BT=batch.version_BT.to(device),
        reward_B=batch.reward_B.to(device),
        prompt_tokens_B=batch.prompt_tokens_B.to(device),
    )


def pad_with_blank(tensor_BT: Tensor) -> Tensor:
    """One more row of zeros."""
    return torch.cat([tensor_BT, tensor_BT.new_zeros(1, tensor_BT.shape[1])])


def cut(
    units: Sequence[tuple[int, ...]], *, tokens_per_micro_batch: int, packing: bool = False
) -> tuple[tuple[int, ...], ...]:
    """Unit numbers by micro-batch, so that each stays within the budget; the largest units come first.

    A unit is given by the lengths of its rows, which stay together. A micro-batch costs rows x longest row, or packed
    the tokens of its rows. A unit that is larger than the budget gets a micro-batch of its own.

    >>> cut([(3,), (9,), (4,), (2,)], tokens_per_micro_batch=9)
    ((1,), (2, 0), (3,))
    >>> cut([(3,), (9,), (4,), (2,)], tokens_per_micro_batch=9, packing=True)
    ((1,), (2, 0, 3))
    """
    if packing:
        return _best_fit([sum(unit) for unit in units], tokens_per_micro_batch)
    return _side_by_side(units, tokens_per_micro_batch)


def _side_by_side(units: Sequence[tuple[int, ...]], budget: int) -> tuple[tuple[int, ...], ...]:
    """Longest first, so that rows of about the same length share a micro-batch."""
    micro_batches: list[list[int]] = []
    longest = rows = 0
    for unit in sorted(range(len(units)), key=lambda unit: (-max(units[unit]), unit)):
        if micro_batches and (rows + len(units[unit])) * longest <= budget:
            micro_batches[-1].append(unit)
            rows += len(units[unit])
        else:
            micro_batches.append([unit])
            longest, rows = max(units[unit]), len(units[unit])
    return tuple(tuple(micro_batch) for micro_batch in micro_batches)


def _best_fit(sizes: Sequence[int], budget: int) -> tuple[tuple[int, ...], ...]:
    """Largest first, each where it leaves the least room (best-fit decreasing)."""
    micro_batches: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of the budget, and in which micro-batch; sorted
    for unit in sorted(range(len(sizes)), key=lambda unit: (-sizes[unit], unit)):
        tightest = bisect_left(room, (sizes[unit], 0))
        if tightest < len(room):
            left, number = room.pop(tightest)
            micro_batches[number].append(unit)
        else:
            left, number = budget, len(micro_batches)
            micro_batches.append([unit])
        insort(room, (left - sizes[unit], number))
    return tuple(tuple(micro_batch) for micro_batch in micro_batches)


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, no wider than their longest response."""
    index = torch.tensor(rows, dtype=torch.long)
    context = tuple(batch.context[row] for row in rows)
    prompt_lengths = tuple(batch.prompt_lengths[row] for row in rows)
    width = max(len(tokens) - prompt for tokens, prompt in zip(context, prompt_lengths, strict=True))
    return Batch(
        context=context,
        prompt_lengths=prompt_lengths,
        token_ids_BT=batch.token_ids_BT[index, :width],
        mask_BT=batch.mask_BT[index, :width],
        rollout_logprobs_BT=batch.rollout_logprobs_BT[index, :width],
        version_BT=batch.version_BT[index, :width],
        reward_B=batch.reward_B[index],
        prompt_tokens_B=batch.prompt_tokens_B[index],
    )


def select_experience(experience: Experience, rows: Sequence[int]) -> Experience:
    """Some rows of an experience, no wider than their longest response."""
    batch = select(experience.batch, rows)
    index = torch.tensor(rows, dtype=torch.long)
    width = batch.mask_BT.shape[1]
    return Experience(
        batch=batch,
        outputs=select_outputs(experience.outputs, rows, width),
        credit=Credit(
            advantages_BT=experience.credit.advantages_BT[index, :width],
            returns_BT=experience.credit.returns_BT[index, :width],
        ),
    )


def select_outputs(outputs: ModelOutputs, rows: Sequence[int], width: int) -> ModelOutputs:
    index = torch.tensor(rows, dtype=torch.long)
    tensors: Mapping[str, Tensor] = {name: tensor[index, :width] for name, tensor in outputs.tensors.items()}
    return ModelOutputs(tensors=tensors)


def scatter_rows(
    pieces: Iterable[tuple[Sequence[int], Tensor]], *, shape: tuple[int, int], device: torch.device
) -> Tensor:
    """Micro-batch tensors put back where their rows came from; zero where no token is."""
    whole_BT = torch.zeros(shape, dtype=torch.float32, device=device)
    for rows, piece_BT in pieces:
        whole_BT[torch.tensor(rows, dtype=torch.long), : piece_BT.shape[1]] = piece_BT
    return whole_BT


def _pad(rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """[B, T]. A rank without a row still has a column: its blank row is one token wide."""
    return torch.nn.utils.rnn.pad_sequence([torch.zeros(1, dtype=dtype), *rows], batch_first=True)[1:]
