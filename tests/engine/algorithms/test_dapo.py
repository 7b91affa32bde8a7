"""DAPO: GRPO with a higher ceiling, token means, replaced groups and a price on length."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from loss_rows import Rows, loss_of, outcomes

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.dapo import DAPO
from engine.algorithms.dynamic_sampling import Exhausted, Surplus
from engine.algorithms.grpo import GRPO
from engine.algorithms.shaping import Truncated


def test_the_loss_is_golden(clip_rows: Rows) -> None:
    loss = loss_of(DAPO(), clip_rows, clip_rows.totals(horizon=4))
    assert loss.value.item() == pytest.approx(-0.206818, abs=2e-6)
    assert loss.metrics["clip_high"].item() == loss.metrics["clip_low"].item() == pytest.approx(1 / 5)


def test_advantages_are_those_of_grpo() -> None:
    own = outcomes([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.3], [0, 0, 0, 0, 1, 1, 2])
    np.testing.assert_array_equal(DAPO().advantage(own), GRPO().advantage(own))


def test_a_token_may_grow_past_the_floors_mirror_image(clip_rows: Rows) -> None:
    """Clip-higher: a ratio of 1.25 is inside for DAPO, and past the ceiling of a symmetric clip."""
    rows = clip_rows.at([0])
    grown = replace(rows, new_BT=rows.old_BT + math.log(1.25))
    totals = grown.totals(horizon=4)
    assert loss_of(DAPO(), grown, totals).metrics["clip_high"].item() == 0.0
    assert loss_of(DAPO(clip_high=0.2), grown, totals).metrics["clip_high"].item() == 1.0


def test_the_defaults_are_those_of_the_paper() -> None:
    algorithm = DAPO()
    assert algorithm.aggregation is Aggregation.TOKEN_MEAN
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.clip_dual) == (0.2, 0.28, 0.0)
    assert algorithm.kl_coef == 0.0 and not algorithm.needs.reference
    assert algorithm.shaping.overlong_share == 4096 / 20480 and algorithm.shaping.overlong_penalty == 1.0
    assert algorithm.shaping.truncated is Truncated.KEEP
    sampling = algorithm.dynamic_sampling
    assert sampling.enabled and sampling.max_batches == 10
    assert (sampling.exhausted, sampling.surplus) == (Exhausted.PARTIAL, Surplus.CARRY)
