"""Dynamic sampling: which groups teach nothing, and why."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.algorithms.dapo import DAPO
from engine.algorithms.dynamic_sampling import DynamicSampling
from engine.algorithms.grpo import GRPO
from engine.algorithms.settings import InvalidSetting
from rewards.score import judgement_of
from workers.records import GroupSummary

ENABLED = DynamicSampling(enabled=True)


def summary(*scores: float, lengths: tuple[int, ...] = ()) -> GroupSummary:
    length_G = np.array(lengths or (3,) * len(scores))
    return GroupSummary(
        draw=7,
        prompt_id="arithmetic-7",
        judgements=tuple(judgement_of(score, name="f") for score in scores),
        length_G=length_G,
        action_tokens_G=length_G,
        prompt_length=9,
        truncated_G=np.zeros(len(scores), dtype=bool),
        greedy=None,
        tokens_by_version={0: 1},
        judging_s=0.0,
        repetition_G=np.zeros(len(scores)),
        digest_G=np.arange(len(scores)),
        answer_digest=0,
    )


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((1.0, 0.0), None),
        ((1.0, 1.0, 1.0), "all_right"),
        ((0.0, 0.0), "all_wrong"),
        ((-1.0, -1.0), "all_wrong"),
        ((0.5, 0.5), "all_right"),
        ((0.1 + 0.2, 0.3), "all_right"),
        ((0.5, 0.5 + 1e-5), None),
        ((1.0, math.nan, 1.0), "all_right"),
        ((1.0, math.nan, 0.0), None),
        ((1.0, math.nan), "unjudged"),
        ((math.nan, math.nan), "unjudged"),
        ((1.0,), None),
        ((math.nan,), None),
    ],
)
def test_a_group_whose_siblings_scored_the_same_is_dropped_for_a_reason(
    scores: tuple[float, ...], reason: str | None
) -> None:
    """Pitfall 23: equal is within a tolerance, and a group of one is never compared."""
    assert ENABLED.reason_to_drop(summary(*scores)) == reason
    assert DynamicSampling().reason_to_drop(summary(*scores)) is None


def test_a_wider_tolerance_drops_more() -> None:
    assert DynamicSampling(enabled=True, tolerance=0.1).reason_to_drop(summary(0.5, 0.55)) == "all_right"


def test_lengths_do_not_make_a_group_informative() -> None:
    """Pitfall 23: DAPO's own penalty on length would tell these wrong siblings apart."""
    group = summary(0.0, 0.0, lengths=(10, 1))
    algorithm = DAPO()
    shaped = algorithm.shaping.rewards(
        group.score_G, length_B=group.action_tokens_G, truncated_B=group.truncated_G, max_length=10
    )
    assert np.ptp(shaped) == 1.0
    assert algorithm.keep(group) == "all_wrong"
    assert GRPO().keep(group) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tolerance": -1.0}, "tolerance is -1"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"max_batches": -1}, "max_batches is -1"),
        ({"draw_ahead": 0.5}, r"draw_ahead is 0\.5"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        DynamicSampling(**settings)
