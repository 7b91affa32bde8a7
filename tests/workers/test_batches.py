"""Rows keep their place, their mask and their numbers on the way into tensors and through micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import example_of, rollout_of, toy_groups, toy_rows

from workers.batches import (
    append_blank,
    collate,
    collate_examples,
    cut,
    pad_with_blank,
    scatter_rows,
    select,
    select_experience,
)
from workers.records import Credit, Example, Experience, Group, ModelOutputs, Row, ScoredRollout

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 120))
@settings(deadline=None)
def test_every_row_is_in_one_micro_batch(lengths: list[int], budget: int) -> None:
    pieces = cut(lengths, tokens_per_micro_batch=budget)
    assert sorted(row for piece in pieces for row in piece) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 120))
@settings(deadline=None)
def test_padded_micro_batches_stay_within_the_budget_or_hold_one_row_that_exceeds_it(
    lengths: list[int], budget: int
) -> None:
    for piece in cut(lengths, tokens_per_micro_batch=budget):
        padded = len(piece) * max(lengths[row] for row in piece)
        assert padded <= budget or (len(piece) == 1 and lengths[piece[0]] > budget)


@given(LENGTHS, st.integers(1, 120))
@settings(deadline=None)
def test_no_micro_batch_could_have_taken_the_next_ones_first_row(lengths: list[int], budget: int) -> None:
    pieces = cut(lengths, tokens_per_micro_batch=budget)
    for piece in pieces[:-1]:
        assert (len(piece) + 1) * max(lengths[row] for row in piece) > budget


def test_no_rows_make_no_micro_batch() -> None:
    assert cut([], tokens_per_micro_batch=8) == ()


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

    def respanned(scored: ScoredRollout) -> ScoredRollout:
        spans = tuple(replace(span, version=5 + number) for number, span in enumerate(scored.rollout.spans))
        return replace(scored, rollout=replace(scored.rollout, spans=spans))

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


def test_an_examples_mask_starts_at_its_first_trained_token() -> None:
    examples = [
        Example(id="a", token_ids=(5, 6, 7, 8), prompt_length=1, mask=(True, False, True)),
        Example(id="b", token_ids=(9, 10, 11), prompt_length=2, mask=(True,)),
    ]
    batch = collate_examples(examples)
    assert batch.token_ids_BT.tolist() == [[6, 7, 8], [11, 0, 0]]
    assert batch.mask_BT.tolist() == [[True, False, True], [True, False, False]]
    assert [tokens.tolist() for tokens in batch.context] == [[5, 6, 7, 8], [9, 10, 11]]
    assert batch.prompt_tokens_B.tolist() == [2, 1], "each is a prompt of its own"


def test_examples_and_rollouts_of_the_same_tokens_are_the_same_batch() -> None:
    groups, rows = toy_groups(), toy_rows((0, 1))
    online, offline = collate(rows, groups), collate_examples([example_of(row, groups) for row in rows])
    assert torch.equal(online.token_ids_BT, offline.token_ids_BT)
    assert torch.equal(online.mask_BT, offline.mask_BT)
    assert online.lengths() == offline.lengths()
    assert online.prompt_lengths == offline.prompt_lengths


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


@given(st.integers(1, 200), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_cut_and_selected_rows_scatter_back_to_where_they_were(budget: int, random: object) -> None:
    groups = toy_groups()
    rows = list(toy_rows((0, 1, 2)))
    random.shuffle(rows)
    batch = collate(rows, groups)
    pieces = []
    for chosen in cut(batch.lengths(), tokens_per_micro_batch=budget):
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
