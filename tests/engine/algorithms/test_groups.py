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


SPELLINGS = [(0.1 + 0.2, 0.3), (0.35, 0.05 * 7), (0.95, 0.1 * 9.5), (1.1 * 3, 3.3), (-0.7, -0.1 * 7), (0.57, 0.19 * 3)]
"""Two ways to arrive at one number, which differ in the last bit."""
MANY = 25_000
"""Groups, of 2 to 64 siblings."""


def many_groups(*, seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """[G] how large each group is, [B] the group of each row, and what else is random."""
    random = np.random.default_rng(seed)
    size_G = random.integers(2, 65, MANY)
    return size_G, np.repeat(np.arange(MANY), size_G), random


@pytest.mark.parametrize("ddof", [0, 1])
def test_groups_that_are_equal_but_for_the_last_bit_are_worth_exactly_nothing(ddof: int) -> None:
    assert all(one != other for one, other in SPELLINGS)
    _, group_B, random = many_groups(seed=1)
    number_G = random.integers(len(SPELLINGS), size=MANY)
    score_B = np.array(SPELLINGS)[number_G[group_B], random.integers(2, size=len(group_B))]
    assert not grpo(score_B, group_B, ddof=ddof).any()


@pytest.mark.parametrize("ddof", [0, 1])
def test_one_response_against_the_rest_is_worth_no_more_than_the_size_of_its_group_allows(ddof: int) -> None:
    """Samuelson's inequality: of n numbers none is more than sqrt(n - 1) population deviations from their mean, and one
    against n - 1 equal ones is that far."""
    size_G, group_B, random = many_groups(seed=2)
    rest_G = random.choice([0.0, 0.35, 0.95, 0.1 + 0.2, -1.7, 1e3 / 3], MANY)
    gap_G = random.choice([1e-5, 0.6, -7.3], MANY)
    score_B = rest_G[group_B]
    one_G = np.cumsum(size_G) - 1 - random.integers(0, size_G)
    score_B[one_G] += gap_G
    limit_G = np.sqrt(size_G - 1)
    worth_B = above_siblings(score_B, group_B, singleton=Singleton.ERROR) / sibling_std(score_B, group_B, ddof=ddof)
    farthest_G = np.abs(worth_B[one_G])
    assert (np.abs(worth_B) <= farthest_G[group_B] * (1 + 1e-9)).all()
    expected_G = limit_G if ddof == 0 else limit_G * np.sqrt((size_G - 1) / size_G)
    # What rounding leaves of a gap of 1e-5 on 333 is known to eight digits.
    np.testing.assert_allclose(farthest_G, expected_G, rtol=1e-7)
    assert (np.sign(worth_B[one_G]) == np.sign(gap_G)).all()


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
