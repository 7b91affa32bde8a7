"""Rows keep their place, their mask and their numbers on the way into tensors and through micro-batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import pairs_of, rollout_of, text_of, toy_groups, toy_rows

from workers.batches import (
    append_blank,
    append_blank_lesson,
    collate,
    collate_lessons,
    pad_with_blank,
    scatter_rows,
    select,
    select_experience,
    select_lessons,
    units_of,
)
from workers.lessons import Example, Lesson, Part
from workers.micro_batches import RowSize, cut_packed, cut_padded, micro_batches, one_by_one, packed_tokens
from workers.records import Credit, Experience, Group, ModelOutputs, Rollout, Row

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)
UNITS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=30)
"""The lengths of rows that stay together."""
PROMPT_TOKENS = (3, 17, 1, 30)
ROW_SIZES = st.builds(
    lambda prompt, tokens: RowSize(prompt=prompt, prompt_tokens=PROMPT_TOKENS[prompt], response_tokens=tokens),
    st.integers(0, len(PROMPT_TOKENS) - 1),
    st.integers(1, 40),
)
SIBLINGS = st.lists(st.lists(ROW_SIZES, min_size=1, max_size=3).map(tuple), min_size=1, max_size=30)
"""The same of rows that share prompts."""
BUDGETS = st.integers(1, 120)


def alone(lengths: Sequence[int]) -> list[tuple[int]]:
    """Every row is a unit of its own."""
    return [(length,) for length in lengths]


def unrelated(units: Sequence[Sequence[int]]) -> list[list[RowSize]]:
    """Rows that share no prompt."""
    prompts = itertools.count()
    return [
        [RowSize(prompt=next(prompts), prompt_tokens=1, response_tokens=length - 1) for length in unit]
        for unit in units
    ]


def cost(rows: Sequence[RowSize]) -> int:
    """By hand: what lies in the packed row."""
    return sum(PROMPT_TOKENS[prompt] for prompt in {row.prompt for row in rows}) + sum(
        row.response_tokens for row in rows
    )


@given(UNITS, SIBLINGS, BUDGETS)
@settings(deadline=None)
def test_every_unit_is_in_one_micro_batch(
    units: list[tuple[int, ...]], siblings: list[tuple[RowSize, ...]], budget: int
) -> None:
    for pieces, count in ((cut_padded(units, budget), len(units)), (cut_packed(siblings, budget), len(siblings))):
        assert sorted(unit for piece in pieces for unit in piece) == list(range(count))


@given(UNITS, BUDGETS)
@settings(deadline=None)
def test_micro_batches_stay_within_the_budget_or_hold_one_unit_that_exceeds_it(
    units: list[tuple[int, ...]], budget: int
) -> None:
    for piece in cut_padded(units, budget):
        lengths = [length for unit in piece for length in units[unit]]
        assert len(lengths) * max(lengths) <= budget or len(piece) == 1


@given(SIBLINGS, BUDGETS)
@settings(deadline=None)
def test_packed_a_micro_batch_costs_its_responses_and_each_of_its_prompts_once(
    units: list[tuple[RowSize, ...]], budget: int
) -> None:
    for piece in cut_packed(units, budget):
        rows = [row for unit in piece for row in units[unit]]
        assert packed_tokens(rows) == cost(rows)
        assert cost(rows) <= budget or len(piece) == 1


def test_siblings_stay_together_where_there_is_room_and_else_the_prompt_is_there_again() -> None:
    siblings = [[RowSize(prompt=number % 2, prompt_tokens=10, response_tokens=5)] for number in range(8)]
    assert cut_packed(siblings, 60) == ((0, 2, 4, 6, 1, 3, 5, 7),)
    assert cut_packed(siblings, 30) == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert cut_packed(siblings, 20) == ((0, 2), (4, 6), (1, 3), (5, 7))
    assert cut_packed(siblings, 19) == tuple((row,) for row in (0, 2, 4, 6, 1, 3, 5, 7))


@given(LENGTHS, BUDGETS)
@settings(deadline=None)
def test_no_micro_batch_could_have_taken_the_next_ones_first_row(lengths: list[int], budget: int) -> None:
    pieces = cut_padded(alone(lengths), budget)
    for piece in pieces[:-1]:
        assert (len(piece) + 1) * max(lengths[row] for row in piece) > budget


@given(UNITS, BUDGETS)
@settings(deadline=None)
def test_no_two_packed_micro_batches_could_have_been_one(units: list[tuple[int, ...]], budget: int) -> None:
    pieces = cut_packed(unrelated(units), budget)
    tokens = sorted(sum(sum(units[unit]) for unit in piece) for piece in pieces)
    assert len(tokens) == 1 or tokens[0] + tokens[1] > budget


@given(LENGTHS, BUDGETS)
@settings(deadline=None)
def test_packing_never_makes_more_micro_batches(lengths: list[int], budget: int) -> None:
    assert len(cut_packed(unrelated(alone(lengths)), budget)) <= len(cut_padded(alone(lengths), budget))


def test_packed_units_go_where_they_leave_the_least_room() -> None:
    units = [(4,), (2, 4), (3,), (7,), (1, 1)]
    assert cut_packed(unrelated(units), 10) == ((3, 2), (1, 0), (4,))


def test_no_rows_make_no_micro_batch() -> None:
    assert cut_padded([], 8) == cut_packed([], 8) == ()


def test_collate_keeps_the_order_of_rows_not_of_groups() -> None:
    groups = in_versions(toy_groups())
    rows = (
        Row(draw=4, sample=2, reward=2.0, prompt_tokens=19),
        Row(draw=0, sample=1, reward=-1.0, prompt_tokens=8),
        Row(draw=4, sample=0, reward=0.5, prompt_tokens=19),
    )
    batch = collate(rows, reversed(groups))
    for number, row in enumerate(rows):
        rollout = rollout_of(row, groups)
        length = len(rollout.token_ids)
        assert batch.context[number].tolist() == [*rollout.prompt.token_ids, *rollout.token_ids.tolist()]
        assert batch.token_ids_BT[number, :length].tolist() == rollout.token_ids.tolist()
        assert batch.mask_BT[number, :length].tolist() == rollout.action_mask().tolist()
        assert batch.rollout_logprobs_BT[number, :length].tolist() == rollout.logprobs.tolist()
        assert batch.version_BT[number, :length].tolist() == rollout.versions().tolist()
        assert not batch.version_BT[number, length:].any()
        assert not batch.mask_BT[number, length:].any()
        assert not batch.rollout_logprobs_BT[number, length:].any()
    assert batch.reward_B.tolist() == [2.0, -1.0, 0.5]
    assert batch.prompt_tokens_B.tolist() == [19, 8, 19]


def in_versions(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The same groups, each span sampled by other weights."""

    def respanned(rollout: Rollout) -> Rollout:
        return replace(
            rollout, spans=tuple(replace(span, version=5 + number) for number, span in enumerate(rollout.spans))
        )

    return tuple(replace(group, rollouts=tuple(map(respanned, group.rollouts))) for group in groups)


def test_every_token_is_of_the_weights_that_sampled_it() -> None:
    groups = in_versions(toy_groups())
    row = Row(draw=1, sample=1, reward=0.0, prompt_tokens=1)
    length = len(rollout_of(row, groups).token_ids)
    assert collate([row], groups).version_BT.tolist() == [[5, 6, 6, *[7] * (length - 3)]]


def test_a_tools_tokens_are_read_but_not_trained_on() -> None:
    groups = toy_groups()
    row = Row(draw=1, sample=1, reward=0.0, prompt_tokens=1)
    batch, length = collate([row], groups), len(rollout_of(row, groups).token_ids)
    assert batch.mask_BT[0].tolist() == [True, False, False, *[True] * (length - 3)]
    assert len(batch.context[0]) == batch.prompt_lengths[0] + length


def test_a_row_without_its_group_is_an_error() -> None:
    with pytest.raises(KeyError):
        collate([Row(draw=5, sample=0, reward=0.0, prompt_tokens=1)], toy_groups(num_groups=2))


def text(id: str, token_ids: tuple[int, ...], mask: tuple[bool, ...]) -> Lesson:
    prompt_length = len(token_ids) - len(mask)
    example = Example(part=Part.TEXT, token_ids=token_ids, prompt_length=prompt_length, mask=mask)
    return Lesson(id=id, examples=(example,), margin=0.0)


def test_an_examples_mask_starts_at_its_first_trained_token() -> None:
    texts = [text("a", (5, 6, 7, 8), (True, False, True)), text("b", (9, 10, 11), (True,))]
    batch = collate_lessons(texts, ()).batch
    assert batch.token_ids_BT.tolist() == [[6, 7, 8], [11, 0, 0]]
    assert batch.mask_BT.tolist() == [[True, False, True], [True, False, False]]
    assert [tokens.tolist() for tokens in batch.context] == [[5, 6, 7, 8], [9, 10, 11]]
    assert batch.prompt_tokens_B.tolist() == [2, 1], "each is a prompt of its own"


def test_lessons_and_rollouts_of_the_same_tokens_are_the_same_batch() -> None:
    groups, rows = toy_groups(), toy_rows((0, 1))
    online, offline = collate(rows, groups), collate_lessons([text_of(row, groups) for row in rows], ()).batch
    assert torch.equal(online.token_ids_BT, offline.token_ids_BT)
    assert torch.equal(online.mask_BT, offline.mask_BT)
    assert online.lengths() == offline.lengths()
    assert online.prompt_lengths == offline.prompt_lengths


def test_what_belongs_to_a_lesson_is_beside_each_of_its_sequences() -> None:
    groups, rows = toy_groups(), toy_rows((1, 2))
    pairs = pairs_of(rows, groups)
    said = [np.full(len(rollout_of(row, groups).token_ids), -1.0 - number) for number, row in enumerate(rows)]
    lessons = append_blank_lesson(collate_lessons(pairs, said))
    assert lessons.parts == (Part.CHOSEN, Part.REJECTED) * 4 + (Part.TEXT,)
    assert lessons.lesson_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, -1]
    assert lessons.margin_B.tolist() == [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 0.0]
    for number, row in enumerate(rows):
        length = len(rollout_of(row, groups).token_ids)
        assert (lessons.reference_logprobs_BT[number, :length] == -1.0 - number).all()
        assert not lessons.reference_logprobs_BT[number, length:].any()
    part = select_lessons(lessons, [5, 2])
    assert part.parts == (Part.REJECTED, Part.CHOSEN) and part.lesson_B.tolist() == [2, 1]
    assert part.reference_logprobs_BT.shape == part.batch.mask_BT.shape
    assert part.reference_logprobs_BT[:, 0].tolist() == [-6.0, -3.0]
    assert part.margin_B.tolist() == [0.0, 0.5]


@given(BUDGETS, st.booleans(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_a_lesson_is_never_split_between_micro_batches(budget: int, packing: bool, random: object) -> None:
    groups, rows = toy_groups(), [*toy_rows((0, 1, 2, 3))]
    random.shuffle(rows)
    lessons = collate_lessons(pairs_of(rows, groups), ())
    units = units_of(lessons, range(len(lessons)))
    seen = []
    for piece in micro_batches(lessons.batch, units, tokens_per_micro_batch=budget, packing=packing):
        part = select_lessons(lessons, piece)
        assert part.parts == (Part.CHOSEN, Part.REJECTED) * (len(piece) // 2)
        seen += part.lesson_B.tolist()[::2]
        assert part.lesson_B.tolist()[::2] == part.lesson_B.tolist()[1::2]
    assert sorted(seen) == list(range(len(rows) // 2))


def test_the_blank_row_trains_nothing_and_changes_no_other() -> None:
    batch = collate(toy_rows((0, 1)), toy_groups())
    padded = append_blank(batch)
    assert len(padded) == len(batch) + 1
    assert not padded.mask_BT[-1].any()
    assert padded.reward_B[-1] == padded.prompt_tokens_B[-1] == 0
    assert torch.equal(padded.reward_B[:-1], batch.reward_B)
    assert torch.equal(padded.version_BT[:-1], batch.version_BT)
    assert padded.context[-1].shape == (2,)
    assert torch.equal(padded.mask_BT[:-1], batch.mask_BT)
    assert torch.equal(padded.rollout_logprobs_BT[:-1], batch.rollout_logprobs_BT)


@given(st.integers(1, 200), st.booleans(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_cut_and_selected_rows_scatter_back_to_where_they_were(budget: int, packing: bool, random: object) -> None:
    groups = toy_groups()
    rows = list(toy_rows((0, 1, 2)))
    random.shuffle(rows)
    batch = collate(rows, groups)
    pieces = []
    units = one_by_one(range(len(batch)))
    for chosen in micro_batches(batch, units, tokens_per_micro_batch=budget, packing=packing):
        piece = select(batch, chosen)
        assert piece.mask_BT.shape[1] == max(len(rollout_of(rows[row], groups).token_ids) for row in chosen)
        pieces.append((chosen, piece.rollout_logprobs_BT))
    whole_BT = scatter_rows(pieces, shape=tuple(batch.mask_BT.shape), device=torch.device("cpu"))
    assert torch.equal(whole_BT, batch.rollout_logprobs_BT)


def test_an_experience_is_selected_row_by_row_in_all_its_parts() -> None:
    batch = append_blank(collate(toy_rows((0, 1)), toy_groups()))
    marks_BT = torch.arange(batch.mask_BT.numel(), dtype=torch.float32).view(batch.mask_BT.shape)
    past = Experience(
        batch=batch,
        outputs=ModelOutputs(tensors={"old_logprobs_BT": marks_BT, "reference_logprobs_BT": -marks_BT}),
        credit=Credit(advantages_BT=marks_BT * 2, returns_BT=marks_BT * 3),
    )
    chosen = (6, 0, 8)
    part = select_experience(past, chosen)
    width = part.batch.mask_BT.shape[1]
    assert torch.equal(part.batch.mask_BT, batch.mask_BT[list(chosen), :width])
    assert torch.equal(part.outputs.old_logprobs_BT, marks_BT[list(chosen), :width])
    assert torch.equal(part.outputs.reference_logprobs_BT, -marks_BT[list(chosen), :width])
    assert torch.equal(part.credit.advantages_BT, 2 * marks_BT[list(chosen), :width])
    assert torch.equal(part.credit.returns_BT, 3 * marks_BT[list(chosen), :width])
    assert torch.equal(part.batch.reward_B, batch.reward_B[list(chosen)])
    assert torch.equal(part.batch.prompt_tokens_B, batch.prompt_tokens_B[list(chosen)])


def test_the_blank_row_of_a_tensor_is_zero() -> None:
    padded = pad_with_blank(torch.ones(2, 3))
    assert padded.tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]
