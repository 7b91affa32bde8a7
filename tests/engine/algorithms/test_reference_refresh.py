"""The reference follows the policy every so many steps, or never."""

from __future__ import annotations

import math

import pytest

from engine.algorithms.reference_refresh import ReferenceRefresh
from engine.algorithms.settings import InvalidSetting


def test_by_default_the_reference_never_moves() -> None:
    assert not any(ReferenceRefresh().is_due(step) for step in range(1000))


def test_it_moves_after_every_so_many_steps() -> None:
    due = [step for step in range(10) if ReferenceRefresh(every_steps=3).is_due(step)]
    assert due == [2, 5, 8]
    assert all(ReferenceRefresh(every_steps=1).is_due(step) for step in range(3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every_steps": -1}, "every_steps is -1"),
        ({"share": 0.0}, r"share is 0\.0"),
        ({"share": 1.1}, r"share is 1\.1"),
        ({"share": math.nan}, "share is nan"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        ReferenceRefresh(**settings)
