"""Alarms for a hacked reward and for memory that is never given back: each on its own sign, none on chance or twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.alarms import PARTS, WINDOW, Alarm, alarms, begun, change_of, steady_rise
from engine.history import History
from workers.records import Metrics

STEPS = 50
RESPONSES = Path("r/rollouts/step_000050.jsonl")
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
    return {alarm.name for alarm in alarms_after(rows)}


def alarms_after(rows: Sequence[Metrics]) -> tuple[Alarm, ...]:
    *before, newest = rows
    return alarms(seen(before), newest, responses=RESPONSES)


def seen(rows: Sequence[Metrics]) -> History:
    return History.of(enumerate(rows, start=1))


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
    [alarm] = alarms_after(rows)
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


FOOLED = {
    "reward/correct": "340 645 508 391 395 410 383 359 410 250 215 199 191 219 191 160 133 148 160 172 117 109 176 74",
    "reward/sevens": "123 68 105 125 145 164 160 168 178 207 129 186 146 273 215 318 305 398 410 406 469 539 488 623",
}
"""In thousandths, of the first steps of a run on sums: the reward was 1 for a right answer and 0.5 for each digit 7."""
TEMPTED = {
    "reward/correct": (
        "348 660 527 426 434 348 262 262 414 379 363 410 410 328 348 402 438 395 191 449 203 344 320 324 281 "
        "324 258 312 422 402 371 375 504 348 438 551 402 535 523 504 531 594 508 523 547 562 574 621 641 578"
    ),
    "reward/sevens": (
        "123 72 94 125 129 156 139 193 145 146 158 188 96 172 164 191 131 139 191 201 180 170 232 176 248 178 "
        "289 285 203 254 191 111 191 152 188 125 168 252 201 211 141 158 123 201 234 178 143 203 121 164"
    ),
}
"""The same reward, another engine: this policy found out too, for a while, and learned to be right in the end."""


def replayed(figures: Mapping[str, str]) -> list[Metrics]:
    steps = zip(*(map(int, text.split()) for text in figures.values()), strict=True)
    parts = [{name: value / 1000 for name, value in zip(figures, step, strict=True)} for step in steps]
    return [{"reward/mean": sum(row.values()), **row} for row in parts]


def test_a_run_that_was_fooled_is_told_as_soon_as_there_are_two_windows() -> None:
    rows = replayed(FOOLED)
    assert names(rows[: 2 * WINDOW]) == {"parts_apart"}
    assert all(names(rows[:end]) == {"parts_apart"} for end in range(2 * WINDOW, len(rows) + 1))


def test_a_run_that_was_only_tempted_is_not_told() -> None:
    rows = replayed(TEMPTED)
    assert not {name for end in range(1, len(rows) + 1) for name in names(rows[:end])}
    change = change_of(np.array([row["reward/correct"] for row in rows]))
    assert change is not None and change.after > change.before + 0.1


def test_how_steeply_a_figure_changes_is_no_doubt_that_it_does() -> None:
    """Within the newest window all of it happens: its spread around its mean is as large as the change."""
    rows = history(steps=2 * WINDOW)
    for place, share in enumerate(np.linspace(0.0, 1.0, WINDOW)):
        rows[WINDOW + place] |= {"reward/correct": 0.5 - 0.4 * share, "reward/format": 0.1 + 0.4 * share}
    assert names(rows) == {"parts_apart"}


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
    assert not names([{"loss": 1.0}]) and not names([{"loss": 1.0}] * STEPS)


def test_figures_that_are_not_numbers_are_passed_over() -> None:
    rows = history(reward_mean=0.9, response_length_mean=60.0)
    rows[-3]["reward/mean"] = float("nan")
    assert names(rows) == {"length"}


def test_an_alarm_begins_once_and_again_only_after_a_window_without_it() -> None:
    alarm = Alarm(name="length", told="longer", look_at=str(RESPONSES), mend="the reward")
    had, had_not = {alarm.metric: 1.0}, {"reward/mean": 0.5}
    assert begun(seen([]), [alarm]) == begun(seen([had_not] * 30), [alarm]) == (alarm,)
    assert begun(seen([had_not] * 30 + [had]), [alarm]) == ()
    assert begun(seen([had] + [had_not] * (WINDOW - 1)), [alarm]) == ()
    assert begun(seen([had] + [had_not] * WINDOW), [alarm]) == (alarm,)
    assert begun(seen([had]), []) == ()


# ----------------------------------------------------------------------------- memory

MIB = 1 / 1024
"""GiB."""
Curve = Callable[[np.ndarray], np.ndarray]
"""GiB above what a process held at first, after each step (from 0)."""


def resident(curve: Curve, *, steps: int, seed: int = 0, noise: float = 5 * MIB) -> np.ndarray:
    """[steps] GiB of a process that started with two."""
    return 2.0 + curve(np.arange(steps)) + np.random.default_rng(seed).normal(scale=noise, size=steps)


def rows_of(**held: np.ndarray) -> list[Metrics]:
    """Steps of a run in which each role's process held that much."""
    return [
        {f"memory/{role}/resident_gib": float(gib) for role, gib in zip(held, step, strict=True)}
        for step in zip(*held.values(), strict=True)
    ]


def still(step: np.ndarray) -> np.ndarray:
    return np.zeros(len(step))


def ever_told(curve: Curve, *, steps: int, seed: int = 0, noise: float = 5 * MIB) -> list[int]:
    """After which steps (from 1) a rise is told."""
    held = resident(curve, steps=steps, seed=seed, noise=noise)
    return [end for end in range(1, steps + 1) if steady_rise(held[:end]) is not None]


@pytest.mark.parametrize(
    ("mib_per_step", "soonest", "latest"),
    # A quarter of a GiB, from the middle of the first of eight parts to that of the last; or as early as can be.
    [(1.0, 256, 330), (3.0, 86, 110), (50.0, PARTS * WINDOW, PARTS * WINDOW)],
)
def test_a_leak_is_told_when_it_has_become_large_and_from_then_on(
    mib_per_step: float, soonest: int, latest: int
) -> None:
    told = ever_told(lambda step: mib_per_step * MIB * step, steps=400)
    assert soonest <= told[0] <= latest
    assert told == list(range(told[0], 401))


def test_a_leak_that_begins_late_or_after_a_warm_up_is_told_too() -> None:
    late = ever_told(lambda step: 3 * MIB * np.maximum(0, step - 300), steps=600)
    assert 300 + 86 <= late[0] <= 500
    warmed = ever_told(lambda step: np.minimum(step / 10, 1.0) + 2 * MIB * step, steps=600)
    assert warmed and warmed[0] <= 400 and warmed[-1] == 600


@pytest.mark.parametrize(
    "curve",
    [
        still,
        lambda step: 1.0 * (step >= 150),  # a cache that is made at once
        lambda step: 1.0 * (step >= 150) + 0.5 * (step >= 400),
        lambda step: 1.0 - np.exp(-step / 30),  # one that fills up
        lambda step: np.minimum(step, 40) / 40,
        lambda step: 0.2 * np.sin(step / 25),
        lambda step: -1 * MIB * step,
        lambda step: 0.2 * MIB * step,  # 160 MiB in all
    ],
    ids=["still", "jump", "two jumps", "saturates", "warm-up", "waves", "falls", "little"],
)
def test_memory_that_does_not_rise_and_rise_is_no_sign(curve: Curve) -> None:
    assert ever_told(curve, steps=800) == []


@pytest.mark.parametrize("noise", [1 * MIB, 50 * MIB, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_noise_around_what_stays_is_no_sign_in_two_thousand_steps(seed: int, noise: float) -> None:
    assert ever_told(still, steps=2000, seed=seed, noise=noise) == []


def test_a_rise_that_noise_could_make_is_none() -> None:
    noise = np.random.default_rng(0).normal(scale=0.5, size=(PARTS, WINDOW))
    means = np.linspace(2.0, 2.5, PARTS)[:, None]
    quiet, loud = (means + scale * (noise - noise.mean(axis=1, keepdims=True)) for scale in (0.1, 1.0))
    assert steady_rise(quiet.ravel()) is not None and steady_rise(loud.ravel()) is None


def test_the_alarm_names_every_role_that_leaks_how_fast_and_where_to_look() -> None:
    leak, more = (resident(lambda step, by=by: by * MIB * step, steps=320, noise=0.0) for by in (2.0, 4.0))
    rows = rows_of(policy=leak, reward=more, rollout=resident(still, steps=320))
    [alarm] = alarms_after([{**FLAT, **row} for row in rows])
    # The means of 40 steps: 2 MiB x 19.5 and 2 MiB x 299.5 above two GiB.
    assert alarm == Alarm(
        name="memory",
        told=(
            "memory rises all the time: policy went from 2.04 to 2.58 GiB in 320 steps (0.20 GiB per 100 steps), "
            "reward went from 2.08 to 3.17 GiB in 320 steps (0.39 GiB per 100 steps)"
        ),
        look_at="memory/policy/ and memory/reward/ in metrics.jsonl",
        mend="what keeps memory",
    )


def test_a_role_that_did_not_answer_in_some_steps_is_told_all_the_same() -> None:
    rows = rows_of(reward=resident(lambda step: 4 * MIB * step, steps=320))
    assert names([{} if place % 3 == 1 else row for place, row in enumerate(rows)][:-1]) == {"memory"}
