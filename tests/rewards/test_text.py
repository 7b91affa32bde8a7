"""Text measures, against difflib and against texts made to be slow."""

from __future__ import annotations

import difflib
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.text import similar


@settings(deadline=None)
@given(st.text("ab c"), st.text("ab c"))
def test_similar_is_at_least_what_difflib_says_and_one_only_for_the_same(first: str, second: str) -> None:
    score = similar(first, second)["similar"]
    assert score >= difflib.SequenceMatcher(None, first.strip(), second.strip(), autojunk=False).ratio()
    assert (score == 1.0) == (first.strip() == second.strip())


def test_long_texts_are_quick_and_too_long_ones_score_zero() -> None:
    start = time.monotonic()
    assert similar("ab" * 10_000, "ba" * 10_000)["similar"] > 0.99
    assert similar("a" * 5_000_000, "a") == {"similar": 0.0}
    assert similar("a", "a" * 20_001) is None
    assert time.monotonic() - start < 5
