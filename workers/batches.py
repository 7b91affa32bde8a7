"""Groups and lessons to tensors, and some rows of a batch to a batch.

Suffixes: `B` rows, `T` token positions of a response.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from workers.lessons import Lesson, LessonBatch, Part
from workers.records import Batch, Credit, Experience, Group, ModelOutputs, Row

BLANK_PROMPT = -1
"""The number of the blank row's prompt, which is nobody else's."""


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
        prompts=tuple(row.draw for row in rows),
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
        prompts=_numbered([example.token_ids[: example.prompt_length] for *_, example in examples]),
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


def _numbered(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Equal ones by the same number."""
    numbers: dict[tuple[int, ...], int] = {}
    return tuple(numbers.setdefault(prompt, len(numbers)) for prompt in prompts)


def each_with_its_own_prompt(batch: Batch) -> Batch:
    """No prompt is held once for several rows: for what is not the same in each of them."""
    return replace(batch, prompts=tuple(range(len(batch))))


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
        prompts=(*batch.prompts, BLANK_PROMPT),
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


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, no wider than their longest response."""
    index = torch.tensor(rows, dtype=torch.long)
    context = tuple(batch.context[row] for row in rows)
    prompt_lengths = tuple(batch.prompt_lengths[row] for row in rows)
    width = max(len(tokens) - prompt for tokens, prompt in zip(context, prompt_lengths, strict=True))
    return Batch(
        context=context,
        prompt_lengths=prompt_lengths,
        prompts=tuple(batch.prompts[row] for row in rows),
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
