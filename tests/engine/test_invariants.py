"""The invariants: what holds passes, and whatever does not hold stops the run, NaN included."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import Bounds
from engine.invariants import InvariantViolated, SkippedUpdates, check_agreement, check_tokens
from workers.tally import UpdateReport

BOUNDS = Bounds(logprob_gap_mean=1e-3, logprob_gap_max=5e-2, ratio_deviation=1e-4, kl_at_start=1e-5)
LIMITS = {"logprob_gap_mean": 1e-3, "logprob_gap_max": 5e-2, "ratio_deviation": 1e-4, "kl": 1e-5}


def report(action_tokens: int) -> UpdateReport:
    return UpdateReport(contributions={}, maxima={}, action_tokens=action_tokens, skipped_updates=0)


def test_masks_that_add_up_to_what_was_announced_pass() -> None:
    check_tokens([report(3), report(0), report(7)], announced=10)


@pytest.mark.parametrize("announced", [9, 11, 0])
def test_a_token_lost_or_learned_from_twice_is_noticed(announced: int) -> None:
    with pytest.raises(InvariantViolated, match=rf"let 10 tokens through.* divided by {announced}"):
        check_tokens([report(3), report(7)], announced=announced)


def test_figures_at_their_bounds_pass() -> None:
    check_agreement(LIMITS, BOUNDS, is_first_update=True)


def test_figures_that_a_run_does_not_have_pass() -> None:
    check_agreement({"reward/mean": float("nan")}, BOUNDS, is_first_update=True)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("factor", [1.001, float("inf"), float("nan")])
def test_a_figure_above_its_bound_or_without_a_value_stops_the_run_by_name(name: str, factor: float) -> None:
    key = {"kl": "kl_at_start"}.get(name, name)
    with pytest.raises(InvariantViolated, match=rf"^{name} is .*, above checks\.{key}={LIMITS[name]:g}: "):
        check_agreement(LIMITS | {name: LIMITS[name] * factor}, BOUNDS, is_first_update=True)


def test_the_policy_may_leave_the_reference_after_the_start() -> None:
    check_agreement({"kl": 3.0}, BOUNDS, is_first_update=False)
    with pytest.raises(InvariantViolated, match="reference model is not the policy"):
        check_agreement({"kl": 3.0}, BOUNDS, is_first_update=True)


def test_skipped_steps_stop_the_run_when_one_more_than_allowed_follow_each_other() -> None:
    skips = SkippedUpdates(most_in_a_row=2)
    for skipped in [1, 1, 0, 1, 2, 0, 0, 1, 1]:
        skips.observe(float(skipped), batch="b")
    with pytest.raises(InvariantViolated, match=r"3 steps in a row.*max_skipped_steps=2.*: r/step_000010\.jsonl$"):
        skips.observe(1.0, batch=Path("r/step_000010.jsonl"))


def test_no_skipped_step_is_allowed_where_none_is() -> None:
    skips = SkippedUpdates(most_in_a_row=0)
    skips.observe(0.0, batch="b")
    with pytest.raises(InvariantViolated, match="1 steps in a row"):
        skips.observe(1.0, batch="b")
