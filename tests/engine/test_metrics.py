"""A step's figures: what could not be judged is in none of them, and a NaN is never passed over."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from engine.metrics import of_rollouts, of_update
from engine.rollout_stream import Taken, TakenGroup
from workers.records import GroupSummary
from workers.tally import UpdateReport

NAN = float("nan")


def group(scores: list[float], *, lengths: list[int], prompt_length: int = 5, **fields: object) -> TakenGroup:
    settings = {"truncated_G": np.zeros(len(scores), dtype=bool), "parts": {}, "judging_s": 0.5} | fields
    summary = GroupSummary(
        draw=0, prompt_id="p", score_G=np.array(scores), length_G=np.array(lengths), version=0, failures=(),
        action_tokens_G=np.array(lengths), prompt_length=prompt_length, **settings,
    )  # fmt: skip
    return TakenGroup(summary=summary, group=None)


def figures(*groups: TakenGroup, dropped: dict[str, int] | None = None) -> dict[str, float]:
    return of_rollouts(Taken(groups=groups, dropped=Counter(dropped or {})))


def report(contributions: dict[str, float], maxima: dict[str, float], *, skipped: int = 0) -> UpdateReport:
    return UpdateReport(contributions=contributions, maxima=maxima, action_tokens=0, skipped_updates=skipped)


def test_the_mean_and_spread_are_those_of_the_judged_responses_alone() -> None:
    seen = figures(group([1.0, NAN, 0.0], lengths=[1, 1, 1]), group([0.5, NAN], lengths=[1, 1]))
    assert seen["reward/mean"] == pytest.approx(0.5)
    assert seen["reward/std"] == pytest.approx(math.sqrt(0.5 / 3))
    assert seen["reward/unjudged_share"] == pytest.approx(2 / 5)
    assert seen["reward/judging_s"] == 1.0


def test_a_group_without_any_judgement_is_neither_uniform_nor_not() -> None:
    uniform, mixed, unjudged = [1.0, 1.0], [1.0, 0.0], [NAN, NAN]
    seen = figures(*[group(scores, lengths=[1, 1]) for scores in (uniform, mixed, unjudged)])
    assert seen["reward/uniform_groups_share"] == pytest.approx(1 / 2)


def test_lengths_and_tokens_count_every_response_judged_or_not() -> None:
    seen = figures(
        group([1.0, NAN], lengths=[2, 6], prompt_length=10, truncated_G=np.array([False, True])),
        group([0.0], lengths=[1], prompt_length=3),
    )
    assert seen["response_length/mean"] == pytest.approx(3.0) and seen["response_length/max"] == 6
    assert seen["response_length/truncated_share"] == pytest.approx(1 / 3)
    assert seen["tokens"] == 2 + 6 + 1 + 2 * 10 + 3


def test_parts_and_reasons_for_dropping_are_reported_by_name() -> None:
    seen = figures(
        group([1.0], lengths=[1], parts={"correct": 1.0, "format": 0.2}),
        group([0.0], lengths=[1], parts={"correct": 0.5}),
        dropped={"too easy": 3},
    )
    assert seen["reward/correct"] == pytest.approx(0.75)
    assert seen["reward/format"] == pytest.approx(0.2)
    assert seen["dropped_groups/too easy"] == 3


def test_contributions_add_up_over_ranks_and_the_largest_maximum_counts() -> None:
    seen = of_update(
        [
            report({"loss": 0.25, "gradient_norm": 2.0}, {"logprob_gap_max": 0.1}, skipped=1),
            report({"loss": -1.0}, {"logprob_gap_max": 0.3, "ratio_deviation": 0.01}, skipped=1),
        ]
    )
    assert seen == {
        "loss": -0.75, "gradient_norm": 2.0, "logprob_gap_max": 0.3, "ratio_deviation": 0.01, "skipped_updates": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_of_any_rank_is_the_steps_figure(place: int) -> None:
    values = [0.1, 0.2, 0.3]
    values[place] = NAN
    seen = of_update([report({"loss": value}, {"logprob_gap_max": value}) for value in values])
    assert math.isnan(seen["logprob_gap_max"]) and math.isnan(seen["loss"])
