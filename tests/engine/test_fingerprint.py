"""Fingerprints: equal for equal settings in any order, different for any difference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.correction import Correction
from engine.algorithms.groups import Scale
from engine.algorithms.grpo import GRPO
from engine.algorithms.shaping import Shaping
from engine.fingerprint import fingerprint, flattened


@dataclass(frozen=True)
class Other:
    learning_rate: float = 0.1


@dataclass(frozen=True)
class Same:
    learning_rate: float = 0.1


def test_every_setting_counts() -> None:
    changes = [
        {},
        {"clip_low": 0.1},
        {"kl_coef": 0.0},
        {"scale": Scale.NONE},
        {"shaping": Shaping(overlong_share=0.2)},
        {"correction": Correction(cap=3.0)},
        {"aggregation": Aggregation.TOKEN_MEAN},
    ]
    assert len({fingerprint(replace(GRPO(), **change)) for change in changes}) == len(changes)
    assert fingerprint(GRPO()) == fingerprint(GRPO())


def test_the_class_counts_where_fields_are_equal() -> None:
    assert fingerprint(Other()) != fingerprint(Same())
    assert flattened({"algo": Other()}) == {"algo": "'Other'", "algo.learning_rate": "0.1"}


def test_types_count() -> None:
    values = [1, 1.0, "1", True, None, [1], {"1": 1}, 0.1 + 0.2, 0.3]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_what_has_no_plain_form_is_refused() -> None:
    with pytest.raises(TypeError, match="set has no fingerprint"):
        fingerprint({"a": {1, 2}})


def test_the_fingerprint_is_the_same_in_every_version() -> None:
    assert fingerprint({"a": [1, 0.5, "x", None]}) == "e31e4dfb240d3ff9716280dbbe890e24"
