"""What is said of held-out prompts."""

from __future__ import annotations

import math

import pytest

from engine.evaluation import standard_error


def test_the_standard_error_is_that_of_a_mean_over_judged_prompts() -> None:
    # Means 0, 1, 1, 0: variance (4 x 0.25) / 3, over 4 prompts.
    assert standard_error([0.0, 1.0, math.nan, 1.0, 0.0]) == pytest.approx(math.sqrt(1 / 3 / 4))
    assert standard_error([0.7]) == 0.0
