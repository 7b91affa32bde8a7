"""Everything that somebody's reward function has ever returned, with what it must come to.

The expectation is made with each value, from how the value was made: nothing here asks the code under test.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from rewards.score import FailureKind

UNSCORABLE, NOT_FINITE, MISSHAPED = FailureKind.UNSCORABLE, FailureKind.NOT_FINITE, FailureKind.MISSHAPED


class Case(NamedTuple):
    value: object
    expected: float | FailureKind


def number(value: float) -> Case:
    return Case(value, float(value) if math.isfinite(value) and abs(value) <= 1e15 else NOT_FINITE)


FLOATS = st.floats().map(number)
USUAL = st.floats(-10, 10).map(number)
INTEGERS = st.one_of(st.integers(-5, 5), st.integers(-(10**400), 10**400)).map(
    lambda own: Case(own, float(own) if abs(own) <= 10**15 else NOT_FINITE)
)
EXACT = st.integers(-(10**6), 10**6).flatmap(
    lambda own: st.sampled_from(
        [
            Case(Fraction(own, 8), own / 8),
            Case(Decimal(own) / 8, own / 8),
            Case(np.float32(own / 8 % 100), float(np.float32(own / 8 % 100))),
            Case(np.int64(own), float(own)),
            Case(np.array(own / 8), own / 8),
            Case(torch.tensor(own / 8, dtype=torch.float64), own / 8),
            Case(torch.tensor(own), float(own)),
            Case(bool(own % 2), float(own % 2)),
            Case(np.bool_(own % 2), float(own % 2)),
        ]
    )
)
HUGE = st.sampled_from(
    [Case(value, NOT_FINITE) for value in (
        10**400, -(10**400), 1e400, 1e308, Fraction(10**400), Decimal("1e400"), Decimal("NaN"), Decimal("-Infinity"),
        np.float64("nan"), np.float16("inf"), np.array(np.nan), torch.tensor(float("inf")), 10**5000,
    )]
)  # fmt: skip
NUMBERS = st.one_of(FLOATS, USUAL, INTEGERS, EXACT, HUGE)

JSON = st.recursive(
    st.none() | st.text(max_size=5) | st.floats(), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
NO_NUMBERS = st.one_of(
    st.text(max_size=20),
    st.just("1.0"),
    st.binary(max_size=9),
    st.complex_numbers(),
    st.lists(JSON, max_size=4),
    st.tuples(st.floats()),
    st.sets(st.integers(), max_size=3),
    st.sampled_from(
        [
            b"1.0", "1", 1j, [1.0], [0.5, 0.5], (1.0,), [[1.0]], {1.0}, range(3), np.array([1.0]), np.zeros((1, 1)),
            np.array("1.0"), np.array(1j), np.complex64(1), np.str_("1.0"), torch.tensor([1.0]), torch.tensor(1j),
            np.datetime64("2020-01-01"), int, len, Ellipsis, NotImplemented, {}, FailureKind.CRASH,
            {"a": {"b": 1.0}}, {"total": "1.0"}, {"score": 1.0, "why": "good"}, {"a": [1.0]},
        ]
    ),
).map(lambda own: Case(own, MISSHAPED))  # fmt: skip
NONE = st.just(Case(None, UNSCORABLE))
NAMES = st.text(max_size=6)


def parts(cases: dict[str, Case]) -> Case:
    """The first part that is no number decides; a `total` trains in place of the sum."""
    value = {name: case.value for name, case in cases.items()}
    failed = [case.expected for case in cases.values() if isinstance(case.expected, FailureKind)]
    if failed or not cases:
        return Case(value, failed[0] if failed else MISSHAPED)
    numbers = {name: case.expected for name, case in cases.items()}
    total = numbers["total"] if "total" in numbers else math.fsum(numbers.values())
    return Case(value, total if abs(total) <= 1e15 else NOT_FINITE)


MAPPINGS = st.dictionaries(NAMES | st.just("total"), st.one_of(USUAL, NUMBERS, NO_NUMBERS, NONE), max_size=4).map(parts)
OUTPUTS = st.one_of(NUMBERS, USUAL, NONE, NO_NUMBERS, MAPPINGS)


def comes_to(expected: float | FailureKind, got: float | FailureKind) -> bool:
    if isinstance(expected, FailureKind) or isinstance(got, FailureKind):
        return expected is got
    return math.isclose(expected, got, rel_tol=1e-9, abs_tol=1e-6 if abs(expected) > 1e3 else 1e-12)
