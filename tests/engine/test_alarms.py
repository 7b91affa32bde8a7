"""Alarms for a hacked reward: each fires on its own sign, none on chance, and none twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from engine.alarms import WINDOW, Alarm, alarms, begun
from workers.records import Metrics

STEPS = 50
FLAT = {
    "reward/mean": 0.5,
    "response_length/mean": 20.0,
    "response_length/truncated_share": 0.1,
    "response/repetition": 0.1,
    "response/repeated_across_prompts": 0.0,
    "reward/unjudged_share": 0.01,
    "reward/uniform_groups_share": 0.3,
    "reward/correct": 0.5,
    "reward/format": 0.1,
}
NOISE = {name: 0.05 * value for name, value in FLAT.items()}


def history(seed: int = 0, *, steps: int = STEPS, noise: float = 1.0, **ends: float) -> list[Metrics]:
    """Steps of noise around figures that stay, but for those that go in a straight line to `ends` (by last name)."""
    generator = np.random.default_rng(seed)
    rows = []
    for progress in np.linspace(0, 1, steps):
        row = {}
        for name, start in FLAT.items():
            end = ends.get(name.replace("/", "_"), start)
            row[name] = start + progress * (end - start) + generator.normal(scale=noise * NOISE[name])
        rows.append(row)
    return rows


def names(rows: list[Metrics]) -> set[str]:
    return {alarm.name for alarm in alarms(rows)}


SIGNS = {
    "length": {"reward_mean": 0.9, "response_length_mean": 60.0},
    "repetition": {"response_repetition": 0.6},
    "parts_apart": {"reward_correct": 0.2, "reward_format": 0.3},
    "same_text": {"response_repeated_across_prompts": 0.6},
    "truncated": {"response_length_truncated_share": 0.6},
    "unjudged": {"reward_unjudged_share": 0.06},
    "uniform": {"reward_uniform_groups_share": 1.1},
}


@pytest.mark.parametrize("name", SIGNS)
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_each_sign_has_its_alarm_and_no_other(name: str, noise: float) -> None:
    assert names(history(noise=noise, **SIGNS[name])) == {name}


def test_responses_that_shrink_while_the_reward_rises_are_a_sign_too() -> None:
    rows = history(reward_mean=0.9, response_length_mean=5.0)
    assert names(rows) == {"length"}
    [alarm] = alarms(rows)
    assert "went from 0.5" in alarm.told and "tokens" in alarm.told


@pytest.mark.parametrize(
    "ends",
    [
        {"reward_mean": 0.9},  # the reward alone
        {"response_length_mean": 60.0},  # length alone
        {"reward_mean": 0.1, "response_length_mean": 60.0},
        {"reward_mean": 0.9, "response_length_mean": 24.0},  # a little longer
        {"reward_correct": 0.9, "reward_format": 0.3},  # both parts rise
        {"reward_correct": 0.1, "reward_format": 0.02},  # both fall
        {"reward_mean": 0.9, "reward_correct": 0.9, "reward_uniform_groups_share": 0.8},
        {"response_repetition": 0.15, "response_length_truncated_share": 0.15},
    ],
)
def test_what_a_healthy_run_does_is_no_sign(ends: dict[str, float]) -> None:
    assert not names(history(**ends))


def false_alarms(*, seeds: int, steps: int, noise: float) -> Counter[str]:
    """Over every step of many runs without any trend."""
    found: Counter[str] = Counter()
    for seed in range(seeds):
        rows = history(seed, steps=steps, noise=noise)
        found.update({name for end in range(2 * WINDOW, steps + 1) for name in names(rows[:end])})
    return found


@pytest.mark.parametrize("noise", [1.0, 5.0])
def test_chance_alone_raises_no_alarm(noise: float) -> None:
    assert not false_alarms(seeds=20, steps=60, noise=noise)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.2, 1.0, 5.0])
def test_chance_alone_raises_no_alarm_in_hundreds_of_runs(noise: float) -> None:
    assert not false_alarms(seeds=300, steps=100, noise=noise)


@pytest.mark.parametrize("name", [name for name in SIGNS if name not in ("same_text", "uniform")])
def test_the_same_steps_in_an_order_of_chance_are_no_sign(name: str) -> None:
    """Trends are the sign, not their values."""
    for seed in range(20):
        rows = history(seed, **SIGNS[name])
        np.random.default_rng(seed).shuffle(rows)
        assert not names(rows)


def test_nothing_is_compared_before_there_are_two_windows() -> None:
    rows = history(steps=2 * WINDOW - 1, reward_mean=0.9, response_length_mean=90.0)
    assert not names(rows)
    assert not names([]) and not names([{"loss": 1.0}] * STEPS)


def test_figures_that_are_not_numbers_are_passed_over() -> None:
    rows = history(reward_mean=0.9, response_length_mean=60.0)
    rows[-3]["reward/mean"] = float("nan")
    assert names(rows) == {"length"}


def test_an_alarm_begins_once_and_again_only_after_a_window_without_it() -> None:
    alarm = Alarm(name="length", told="longer")
    had, had_not = {alarm.metric: 1.0}, {"reward/mean": 0.5}
    assert begun([], [alarm]) == begun([had_not] * 30, [alarm]) == (alarm,)
    assert begun([had_not] * 30 + [had], [alarm]) == ()
    assert begun([had] + [had_not] * (WINDOW - 1), [alarm]) == ()
    assert begun([had] + [had_not] * WINDOW, [alarm]) == (alarm,)
    assert begun([had], []) == ()
