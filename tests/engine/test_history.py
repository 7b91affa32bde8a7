"""A history tells of every step what it was told, in little room; what another thread was given stays as it is."""

from __future__ import annotations

import tracemalloc
from collections import deque

import numpy as np
import pytest

from engine.history import NEWEST, History

ROWS = [(step, {"loss": 1.0 / step, **({"kl": 0.1 * step} if step % 3 == 0 else {})}) for step in range(1, 101)]


def test_each_metric_is_what_its_steps_had_in_their_order() -> None:
    history = History.of(ROWS)
    for name in ("loss", "kl"):
        assert history.steps(name).tolist() == [step for step, row in ROWS if name in row]
        assert history.values(name).tolist() == [row[name] for _, row in ROWS if name in row]
    assert len(history) == history.last_step == 100
    assert history.has(100) and not history.has(101)
    assert not len(history.values("nothing")) and not len(history.steps("nothing"))


def test_the_newest_rows_are_whole_and_older_ones_are_not_promised() -> None:
    assert History.of(ROWS).newest(3) == [row for _, row in ROWS[-3:]]
    assert History.of(ROWS[:2]).newest(NEWEST) == [row for _, row in ROWS[:2]]
    with pytest.raises(ValueError, match=f"keeps {NEWEST}"):
        History.of(ROWS).newest(NEWEST + 1)


@pytest.mark.parametrize("known", [0, 1, 16, 17, 50])
def test_what_was_until_now_stays_while_more_comes(known: int) -> None:
    history = History.of(ROWS[:known])
    then = history.until_now()
    for step, row in ROWS[known:]:
        history.add(step, row)
    assert len(then) == known and then.newest(1) == [row for _, row in ROWS[:known]][-1:]
    assert then.values("loss").tolist() == [row["loss"] for _, row in ROWS[:known]]
    assert len(history) == 100


def test_a_row_that_comes_while_it_is_copied_is_there_whole_or_not_at_all() -> None:
    class Interrupted(deque):
        """Another thread adds a row as soon as this was copied."""

        def copy(self) -> deque:
            copied = deque(self)
            history._newest = deque(self)
            history.add(1, {"loss": 3.0})
            return copied

    history = History()
    history._newest = Interrupted()
    then = history.until_now()
    assert len(history) == 1
    assert len(then.newest(1)) == len(then), "whoever sees that there is a row looks at it"


def test_a_metric_of_a_step_takes_few_bytes() -> None:
    names = [f"metric/{number}" for number in range(100)]
    history, generator = History(), np.random.default_rng(0)
    tracemalloc.start()
    for step in range(1000):
        history.add(step, dict(zip(names, generator.normal(size=len(names)).tolist(), strict=True)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / (1000 * len(names)) < 2 * 16 + 1, "a number and its step, and at most as much room for more"
