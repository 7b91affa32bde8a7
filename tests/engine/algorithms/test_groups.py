"""Siblings: found by id, compared in two passes, never compared by rounding."""

from __future__ import annotations

import numpy as np
import pytest

from engine.algorithms.groups import LonelyResponse, Singleton, above_siblings, sibling_rows, sibling_std

GROUP_B = np.array([0, 0, 0, 0, 1, 1, 2])
SCORE_B = np.array([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.3])


def grpo(score_B: np.ndarray, group_B: np.ndarray, *, ddof: int = 1) -> np.ndarray:
    return above_siblings(score_B, group_B, singleton=Singleton.ZERO) / (
        sibling_std(score_B, group_B, ddof=ddof) + 1e-6
    )


def test_population_spread_gives_the_golden_advantages() -> None:
    golden = [1.507553, -0.904532, 0.301511, -0.904532, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(grpo(SCORE_B, GROUP_B, ddof=0), golden, atol=2e-6)


def test_above_siblings_gives_the_golden_dr_grpo_advantages() -> None:
    golden = [0.625, -0.375, 0.125, -0.375, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(above_siblings(SCORE_B, GROUP_B, singleton=Singleton.ZERO), golden, atol=1e-12)


def test_the_order_of_rows_does_not_matter() -> None:
    order = np.random.default_rng(5).permutation(len(SCORE_B))
    np.testing.assert_allclose(grpo(SCORE_B[order], GROUP_B[order]), grpo(SCORE_B, GROUP_B)[order], rtol=1e-13)


def test_group_ids_are_names_not_positions() -> None:
    names_B = np.array(["b", "b", "b", "b", "a", "a", "c"])
    np.testing.assert_array_equal(grpo(SCORE_B, names_B), grpo(SCORE_B, GROUP_B))
    np.testing.assert_array_equal(grpo(SCORE_B, GROUP_B * 10**12 + 7), grpo(SCORE_B, GROUP_B))


def test_every_row_belongs_to_exactly_one_group_of_its_own_id() -> None:
    group_B = np.array([4, 9, 4, 4, 1, 9])
    groups = sibling_rows(group_B)
    assert sorted(np.concatenate(groups).tolist()) == list(range(6))
    assert [set(group_B[rows].tolist()) for rows in groups] == [{1}, {4}, {9}]


def test_scores_that_differ_by_rounding_are_exactly_equal() -> None:
    score_B, group_B = np.array([0.1 + 0.2, 0.3, 0.3]), np.zeros(3, dtype=np.int64)
    assert score_B[0] != score_B[1]
    assert above_siblings(score_B, group_B, singleton=Singleton.ZERO).tolist() == [0.0, 0.0, 0.0]
    assert sibling_std(score_B, group_B).tolist() == [1.0, 1.0, 1.0]


def test_a_small_true_difference_is_not_rounded_away() -> None:
    advantage_B = grpo(np.array([1.0, 1.00001]), np.zeros(2, dtype=np.int64))
    np.testing.assert_allclose(advantage_B, [-0.620, 0.620], atol=1e-3)


def test_the_spread_of_large_scores_survives() -> None:
    # E[x^2] - E[x]^2 of these is 0 in float64.
    std_B = sibling_std(np.array([1e9, 1e9 + 1000.0]), np.zeros(2, dtype=np.int64))
    np.testing.assert_allclose(std_B, 1000.0 / np.sqrt(2.0), rtol=1e-9)


def test_a_response_alone_is_worth_what_the_settings_say() -> None:
    alone = np.array([0.3]), np.array([41])
    assert above_siblings(*alone, singleton=Singleton.ZERO).tolist() == [0.0]
    assert above_siblings(*alone, singleton=Singleton.RAW).tolist() == [0.3]
    with pytest.raises(LonelyResponse, match=r"draw 41 .*0\.3"):
        above_siblings(*alone, singleton=Singleton.ERROR)


def test_no_rows_have_no_advantages() -> None:
    nothing = np.zeros(0), np.zeros(0, dtype=np.int64)
    assert above_siblings(*nothing, singleton=Singleton.ERROR).shape == (0,)
    assert sibling_std(*nothing).shape == (0,)
