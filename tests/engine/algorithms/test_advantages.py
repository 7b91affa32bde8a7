"""What responses are worth, whatever their scores: properties of every estimator that compares siblings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_rows import outcomes

from engine.algorithms.base import Algorithm
from engine.algorithms.cispo import CISPO
from engine.algorithms.dapo import DAPO
from engine.algorithms.dr_grpo import DrGRPO
from engine.algorithms.groups import Scale
from engine.algorithms.grpo import GRPO
from engine.algorithms.gspo import GSPO
from engine.algorithms.reinforce_pp import ReinforcePP
from engine.algorithms.reinforce_pp_baseline import ReinforcePPBaseline
from engine.algorithms.remax import ReMax
from engine.algorithms.rloo import RLOO

SCALED: dict[str, Algorithm] = {
    "grpo": GRPO(std_eps=0.0),
    "grpo, population": GRPO(std_eps=0.0, std_ddof=0),
    "grpo, batch": GRPO(std_eps=0.0, scale=Scale.BATCH),
    "dapo": DAPO(std_eps=0.0),
    "gspo": GSPO(std_eps=0.0),
    "cispo": CISPO(std_eps=0.0),
}
"""In standard deviations."""
LINEAR: dict[str, Algorithm] = {"dr_grpo": DrGRPO(), "rloo": RLOO(), "reinforce_pp_baseline": ReinforcePPBaseline()}
"""In units of score."""
COMPARED = SCALED | LINEAR
by_siblings = pytest.mark.parametrize("name", COMPARED)

quarters = st.integers(-40, 40).map(lambda k: k / 4)
"""Exact in binary, so that scores of a batch are equal, or at least a quarter apart."""
uneven_groups = st.lists(st.lists(quarters, min_size=1, max_size=6), min_size=1, max_size=5)
quick = settings(max_examples=40, deadline=None)


def flat(groups: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and the number of the group that each belongs to."""
    score_B = np.array([score for group in groups for score in group])
    return score_B, np.array([number for number, group in enumerate(groups) for _ in group])


@by_siblings
@quick
@given(groups=st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 6)), min_size=1, max_size=5))
def test_siblings_that_all_scored_the_same_are_worth_exactly_nothing(
    name: str, groups: list[tuple[float, int]]
) -> None:
    score_B, group_B = flat([[score] * size for score, size in groups])
    assert COMPARED[name].advantage(outcomes(score_B, group_B)).tolist() == [0.0] * len(score_B)


@by_siblings
def test_scores_that_differ_by_rounding_are_the_same(name: str) -> None:
    own = outcomes([0.1 + 0.2, 0.3, 1.0, 0.0], [0, 0, 1, 1])
    assert COMPARED[name].advantage(own)[:2].tolist() == [0.0, 0.0]


@by_siblings
def test_a_small_true_difference_counts_in_full(name: str) -> None:
    """Pitfall 12: no floor under a variance makes it smaller."""
    expected = {"dr_grpo": 0.5e-5, "reinforce_pp_baseline": 0.5e-5, "rloo": 1e-5, "grpo, population": 1.0}
    advantage_B = COMPARED[name].advantage(outcomes([1.0, 1.00001], [0, 0]))
    worth = expected.get(name, 0.5**0.5)
    np.testing.assert_allclose(advantage_B, [-worth, worth], rtol=1e-9)


@by_siblings
@quick
@given(groups=uneven_groups, shift=quarters)
def test_a_constant_added_to_every_score_changes_nothing(name: str, groups: list[list[float]], shift: float) -> None:
    score_B, group_B = flat(groups)
    plain_B, shifted_B = (COMPARED[name].advantage(outcomes(own_B, group_B)) for own_B in (score_B, score_B + shift))
    np.testing.assert_allclose(shifted_B, plain_B, rtol=1e-9, atol=1e-12)


@by_siblings
@quick
@given(groups=uneven_groups, factor=st.sampled_from([0.25, 0.5, 3.0, 100.0]))
def test_in_other_units_only_an_advantage_without_units_stays(
    name: str, groups: list[list[float]], factor: float
) -> None:
    score_B, group_B = flat(groups)
    plain_B, scaled_B = (COMPARED[name].advantage(outcomes(own_B, group_B)) for own_B in (score_B, score_B * factor))
    np.testing.assert_allclose(scaled_B, plain_B * (1.0 if name in SCALED else factor), rtol=1e-9, atol=1e-12)


@quick
@given(groups=uneven_groups)
def test_epsilon_moves_an_advantage_by_its_share_of_the_spread(groups: list[list[float]]) -> None:
    score_B, group_B = flat(groups)
    plain_B, eps_B = (GRPO(std_eps=eps).advantage(outcomes(score_B, group_B)) for eps in (0.0, 1e-6))
    # Scores are quarters apart, so that the spread of six siblings is at least 0.1.
    np.testing.assert_allclose(eps_B, plain_B, rtol=1e-5, atol=0)


@by_siblings
@quick
@given(groups=uneven_groups, seed=st.integers(0, 1000))
def test_neither_the_order_of_rows_nor_the_names_of_groups_matter(
    name: str, groups: list[list[float]], seed: int
) -> None:
    """Pitfall 24: siblings are found by their draw, wherever they stand."""
    score_B, group_B = flat(groups)
    order = np.random.default_rng(seed).permutation(len(score_B))
    renamed_B = 10**12 - 7 * group_B
    plain_B = COMPARED[name].advantage(outcomes(score_B, group_B))
    shuffled_B = COMPARED[name].advantage(outcomes(score_B[order], renamed_B[order]))
    np.testing.assert_allclose(shuffled_B, plain_B[order], rtol=1e-9, atol=1e-12)


@by_siblings
@quick
@given(groups=uneven_groups)
def test_what_siblings_are_worth_adds_up_to_nothing_and_follows_their_scores(
    name: str, groups: list[list[float]]
) -> None:
    score_B, group_B = flat(groups)
    advantage_B = COMPARED[name].advantage(outcomes(score_B, group_B))
    for group in range(len(groups)):
        own_B, scores = advantage_B[group_B == group], score_B[group_B == group]
        assert own_B.sum() == pytest.approx(0.0, abs=1e-9)
        assert (np.diff(own_B[np.argsort(scores, kind="stable")]) >= -1e-9).all()
        if len(own_B) == 1:
            assert own_B.tolist() == [0.0]


@pytest.mark.parametrize("name", [name for name in COMPARED if name != "grpo, batch"])
@quick
@given(groups=uneven_groups)
def test_other_prompts_do_not_matter(name: str, groups: list[list[float]]) -> None:
    score_B, group_B = flat(groups)
    together_B = COMPARED[name].advantage(outcomes(score_B, group_B))
    apart = [COMPARED[name].advantage(outcomes(group, [0] * len(group))) for group in groups]
    np.testing.assert_allclose(together_B, np.concatenate(apart), rtol=1e-9, atol=1e-12)


@quick
@given(groups=uneven_groups)
def test_in_standard_deviations_a_group_has_spread_one(groups: list[list[float]]) -> None:
    score_B, group_B = flat(groups)
    for ddof in (0, 1):
        advantage_B = GRPO(std_eps=0.0, std_ddof=ddof).advantage(outcomes(score_B, group_B))
        for number, group in enumerate(groups):
            if len(set(group)) > 1:
                assert advantage_B[group_B == number].std(ddof=ddof) == pytest.approx(1.0)


@quick
@given(groups=uneven_groups)
def test_leaving_one_out_is_the_distance_from_the_mean_stretched(groups: list[list[float]]) -> None:
    score_B, group_B = flat(groups)
    size_B = np.array([len(group) for group in groups for _ in group])
    stretched_B = DrGRPO().advantage(outcomes(score_B, group_B)) * size_B / np.maximum(size_B - 1, 1)
    np.testing.assert_allclose(RLOO().advantage(outcomes(score_B, group_B)), stretched_B, rtol=1e-9, atol=1e-12)


@quick
@given(groups=uneven_groups, shift=quarters)
def test_without_siblings_a_score_is_compared_with_the_greedy_one_or_with_nothing(
    groups: list[list[float]], shift: float
) -> None:
    score_B, group_B = flat(groups)
    np.testing.assert_array_equal(ReinforcePP().advantage(outcomes(score_B, group_B)), score_B)
    own = outcomes(score_B, group_B, greedy=score_B - shift)
    assert ReMax().advantage(own).tolist() == [shift] * len(score_B)
    assert replace(ReMax(), gamma=0.9).advantage(own).tolist() == [shift] * len(score_B)
