"""From a raw score to a reward: clipped, then priced by length, then what truncation makes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.algorithms.settings import InvalidSetting
from engine.algorithms.shaping import Shaping, Truncated


def rewards(
    shaping: Shaping, score: list[float], *, length: list[int] | None = None, truncated: list[bool] | None = None
) -> list[float]:
    size = len(score)
    return shaping.rewards(
        np.array(score),
        length_B=np.array(length or [5] * size),
        truncated_B=np.array(truncated or [False] * size),
        max_length=10,
    ).tolist()


def test_the_overlong_penalty_is_golden() -> None:
    """DAPO, Eq. 13, held at the full penalty beyond the limit."""
    shaping = Shaping(overlong_share=4096 / 20480)
    lengths = np.array([16000, 16384, 17408, 18432, 20480, 21000])
    penalty_B = shaping.rewards(np.zeros(6), length_B=lengths, truncated_B=np.zeros(6, dtype=bool), max_length=20480)
    np.testing.assert_allclose(penalty_B, [0.0, 0.0, -0.25, -0.5, -1.0, -1.0], rtol=0, atol=1e-12)


def test_a_heavier_penalty_is_a_multiple() -> None:
    shaping = Shaping(overlong_share=0.5, overlong_penalty=3.0)
    assert rewards(shaping, [1.0, 1.0, 1.0], length=[5, 7, 10]) == pytest.approx([1.0, 1 - 3 * 0.4, -2.0])


def test_by_default_a_score_is_the_reward() -> None:
    scores = [1.5, -20.0, 0.0]
    assert rewards(Shaping(), scores, length=[1, 10, 99], truncated=[False, True, True]) == scores


def test_scores_are_clipped_before_anything_is_added() -> None:
    shaping = Shaping(clip=(-1.0, 1.0), overlong_share=0.5)
    assert rewards(shaping, [5.0, -5.0, 0.5], length=[10, 10, 1]) == [0.0, -2.0, 0.5]


@pytest.mark.parametrize(
    ("truncated", "expected"),
    [
        (Truncated.KEEP, [1.0, 0.0]),
        (Truncated.MASK, [1.0, 0.0]),
        (Truncated.SET, [1.0, -0.5]),
        (Truncated.SCALE, [1.0, 0.0]),
    ],
)
def test_a_truncated_response_gets_what_the_settings_say(truncated: Truncated, expected: list[float]) -> None:
    shaping = Shaping(overlong_share=0.5, truncated=truncated, truncated_value=-0.5)
    assert rewards(shaping, [1.0, 1.0], length=[5, 10], truncated=[False, True]) == expected


def test_a_truncated_reward_is_scaled_after_its_length_was_priced() -> None:
    shaping = Shaping(overlong_share=0.5, truncated=Truncated.SCALE, truncated_value=0.5)
    assert rewards(shaping, [3.0, 3.0], length=[10, 10], truncated=[False, True]) == [2.0, 1.0]


def test_only_masking_keeps_a_truncated_response_from_being_learned_from() -> None:
    truncated_B = np.array([False, True])
    for choice in Truncated:
        expected = [True, choice is not Truncated.MASK]
        assert Shaping(truncated=choice).trains_on(truncated_B).tolist() == expected


@pytest.mark.parametrize("truncated", Truncated)
def test_a_response_that_could_not_be_judged_stays_unjudged(truncated: Truncated) -> None:
    """Pitfall 13: it becomes neither a zero nor the reward of a truncated response."""
    shaping = Shaping(clip=(0.0, 1.0), overlong_share=0.5, truncated=truncated, truncated_value=-1.0)
    reward, other = rewards(shaping, [math.nan, 1.0], length=[10, 1], truncated=[True, False])
    assert math.isnan(reward) and other == 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip": (1.0, -1.0)}, "the lower bound comes first"),
        ({"clip": (math.nan, 1.0)}, "clip is"),
        ({"overlong_share": 1.5}, r"overlong_share is 1\.5"),
        ({"overlong_penalty": -1.0}, "overlong_penalty is -1"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        Shaping(**settings)
