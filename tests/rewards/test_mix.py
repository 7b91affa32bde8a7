"""One judgement from several judges: a weighted sum, in which no failure counts as a zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards.mix import Voice, mixed
from rewards.score import LARGEST, Failure, FailureKind, Judgement, Score

CRASHED = Failure(kind=FailureKind.CRASH, reason="died")
NO_SAY = Failure(kind=FailureKind.UNSCORABLE, reason="f returned None")


def voice(name: str, said: Judgement | None, weight: float = 1.0, *, abstains: bool = False) -> Voice:
    return Voice(name=name, weight=weight, abstains=abstains, said=said)


def score(total: float, **parts: float) -> Score:
    return Score(total=total, parts=parts or {"only": total})


def test_totals_are_summed_by_weight_and_parts_bear_their_judges_names() -> None:
    said = mixed([voice("math", score(1.0), 0.75), voice("form", score(0.5, tags=0.25, length=0.25), -2.0)])
    assert said == Score(total=-0.25, parts={"math": 1.0, "form": 0.5, "form/tags": 0.25, "form/length": 0.25})


def test_one_judge_alone_keeps_the_names_of_its_parts() -> None:
    assert mixed([voice("math", score(1.5, a=1.0, b=0.5), 2.0)]) == Score(total=3.0, parts={"a": 1.0, "b": 0.5})


def test_a_failure_of_one_that_counts_fails_the_response() -> None:
    assert mixed([voice("math", score(1.0)), voice("form", CRASHED)]) is CRASHED
    assert mixed([voice("math", score(1.0)), voice("form", NO_SAY)]) is NO_SAY
    assert mixed([voice("math", score(1.0)), voice("form", CRASHED, abstains=True)]) is CRASHED


def test_who_abstains_is_not_asked_or_has_no_weight_takes_nothing_away() -> None:
    math = voice("math", score(1.0), 0.5)
    assert mixed([math, voice("form", NO_SAY, abstains=True)]).total == 0.5
    assert mixed([math, voice("form", None)]).total == 0.5
    assert mixed([math, voice("form", CRASHED, 0.0)]).total == 0.5
    assert mixed([math, voice("form", score(9.0), 0.0)]) == Score(total=0.5, parts={"math": 1.0, "form": 9.0})


def test_where_nobody_judges_there_is_no_score() -> None:
    said = mixed([voice("math", None), voice("form", NO_SAY, abstains=True)])
    assert isinstance(said, Failure) and said.kind is FailureKind.UNSCORABLE and "math, form" in said.reason


ANY = st.floats(allow_nan=True, allow_infinity=True)
SCORES = st.floats(-LARGEST, LARGEST)


@given(st.lists(st.tuples(ANY, SCORES), min_size=1, max_size=5))
@example([(1e308, 1e15)])
@example([(1e308, 1e15), (-1e308, 1e15)])
@example([(1.0, 1e15), (1.0, 1e15), (-1.0, 1e15)])
@example([(math.inf, 0.0)])
@example([(1e-320, 1e15)])
def test_whatever_the_weights_the_sum_is_right_or_there_is_none(voices: Sequence[tuple[float, float]]) -> None:
    """Beside exact fractions."""
    said = mixed([voice(f"f{number}", score(total), weight) for number, (weight, total) in enumerate(voices)])
    if all(not weight for weight, _ in voices):
        assert isinstance(said, Failure) and said.kind is FailureKind.UNSCORABLE
    elif isinstance(said, Failure):
        assert said.kind is FailureKind.NOT_FINITE and not within(voices, 0.999)
    else:
        assert within(voices, 1.001) and abs(said.total) <= LARGEST
        exact = sum(Fraction(weight) * Fraction(total) for weight, total in voices)
        assert said.total == pytest.approx(float(exact), abs=1e-15 * sum(abs(w * t) for w, t in voices))


def within(voices: Sequence[tuple[float, float]], share: float) -> bool:
    """Whether each product and the sum of all are no larger than this share of the largest score."""
    if not all(math.isfinite(weight) for weight, _ in voices):
        return False
    products = [Fraction(weight) * Fraction(total) for weight, total in voices]
    return all(abs(number) <= Fraction(share * LARGEST) for number in (*products, sum(products)))


def test_a_sum_that_is_too_large_says_whose_weights_made_it() -> None:
    said = mixed([voice("math", score(1e15), 2.0), voice("form", score(1.0), 0.5)])
    assert isinstance(said, Failure) and said.kind is FailureKind.NOT_FINITE
    assert said.reason == "2 x 1e+15 (math) + 0.5 x 1 (form) goes beyond 1e+15; set smaller weights"
