"""Figures of one response: repetition against a count by hand, hashes against what people call the same text."""

from __future__ import annotations

import numpy as np
import pytest

from rewards.score import Score
from workers.records import Group, GroupSummary, Prompt, Rollout, Span, Stop
from workers.text_figures import PIECE, digest, repetition


@pytest.mark.parametrize("length", [0, 1, 4, 5, 30, 300])
@pytest.mark.parametrize("vocabulary", [1, 2, 3, 50_000])
def test_repetition_is_the_share_of_pieces_that_were_there_before(length: int, vocabulary: int) -> None:
    tokens = np.random.default_rng(length).integers(0, vocabulary, length, dtype=np.int32)
    pieces = [tuple(tokens[at : at + PIECE].tolist()) for at in range(length - PIECE + 1)]
    expected = 1 - len(set(pieces)) / len(pieces) if pieces else 0.0
    assert repetition(tokens) == pytest.approx(expected)


def test_a_hash_sets_case_blanks_and_forms_of_characters_aside_and_nothing_else() -> None:
    same = ["The answer: 7", "  the ANSWER:\n7 ", "the answer: \uff17"]
    assert len({digest(text) for text in same}) == 1
    others = ["the answer: 8", "the answer 7", "theanswer: 7", "", "\x00", "\ud800", "\ud801"]
    assert len({digest(text) for text in [*same, *others]}) == 1 + len(others)
    assert all(-(2**63) <= digest(str(number)) < 2**63 for number in range(100))


def summary_of(text: str, token_ids: list[int], *, answer: str, prompt_id: str = "p1") -> GroupSummary:
    prompt = Prompt(id=prompt_id, messages=(), token_ids=(1,), answer=answer, row={}, from_text=True)
    rollout = Rollout(
        prompt=prompt, draw=0, sample=0, text=text, token_ids=np.array(token_ids), logprobs=np.zeros(len(token_ids)),
        spans=(Span(start=0, end=len(token_ids), sampled=True, version=1),), stop=Stop.END,
    )  # fmt: skip
    group = Group(rollouts=(rollout,), greedy=None, prompt_text="")
    return group.summary([Score(total=1.0, parts={})], judging_s=0.0)


def test_a_groups_summary_has_them_for_each_response() -> None:
    summary = summary_of(" Seven ", [7] * 7, answer="seven")
    assert summary.repetition_G.tolist() == [0.75]
    assert summary.digest_G.tolist() == [summary.answer_digest] == [digest("seven")]
    assert summary.digest_G.dtype == np.int64


def test_prompts_without_an_answer_expect_different_ones() -> None:
    """A reward model judges without: a text that it likes under every prompt is to be seen all the same."""
    one, other = (summary_of("fine", [1], answer=" ", prompt_id=name) for name in ("p1", "p2"))
    assert one.answer_digest != other.answer_digest
