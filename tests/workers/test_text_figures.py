"""Figures of one response: repetition against a count by hand, hashes against what people call the same text."""

from __future__ import annotations

import numpy as np
import pytest

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
