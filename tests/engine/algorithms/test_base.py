"""What every algorithm shares: outcomes are finite, credit is selected, groups are kept, state stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from every_algorithm import ALGORITHMS, every_algorithm
from loss_rows import Rows, credited, doubles, outcomes

from engine.algorithms.base import Algorithm, Objective
from engine.algorithms.grpo import GRPO
from engine.algorithms.sft import SFT
from rewards.score import Score
from workers.records import AlgorithmState, GroupSummary


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_an_outcome_without_a_finite_score_is_refused_by_row(score: float) -> None:
    """Pitfall 13: one unscorable response would be trained on as a zero, or spread to its siblings."""
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        outcomes([1.0, score], [0, 0])


def test_every_action_token_gets_its_rows_advantage_and_nothing_else_gets_any(random_rows: Rows) -> None:
    advantage_B = doubles([0.5, float("nan"), -1.0, 2.0, 0.0, 3.0]).float()
    mask_BT = random_rows.mask_BT.clone()
    mask_BT[1] = False
    credit = credited(GRPO(), replace(random_rows, advantage_B=advantage_B, mask_BT=mask_BT))
    assert credit.advantages_BT.shape == mask_BT.shape
    assert credit.advantages_BT.dtype == advantage_B.dtype
    assert (credit.advantages_BT[~mask_BT] == 0).all()
    for row in (0, 2, 3, 4, 5):
        assert set(credit.advantages_BT[row][mask_BT[row]].tolist()) == {advantage_B[row].item()}


def test_by_default_every_group_is_kept_and_the_state_stays() -> None:
    summary = GroupSummary(
        draw=7,
        prompt_id="arithmetic-7",
        judgements=(Score(total=1.0, parts={"correct": 1.0}),) * 2,
        length_G=np.array([3, 3]),
        action_tokens_G=np.array([3, 3]),
        prompt_length=9,
        truncated_G=np.array([False, False]),
        greedy=None,
        tokens_by_version={2: 1},
        judging_s=0.0,
        repetition_G=np.zeros(2),
        digest_G=np.array([1, 2]),
        answer_digest=1,
    )
    assert GRPO().keep(summary) is None
    assert GRPO().next_state(AlgorithmState(kl_coef=0.3), {"kl": 9.0}) == AlgorithmState(kl_coef=0.3)
    assert GRPO().trains_policy(0)


@every_algorithm
def test_an_algorithm_has_a_critics_loss_exactly_when_it_asks_for_a_critic(random_rows: Rows, name: str) -> None:
    algorithm, past, totals = ALGORITHMS[name], random_rows.experience(), random_rows.totals()
    if algorithm.needs.critic:
        assert algorithm.value_loss(random_rows.values_BT, past, totals).value.isfinite()
    else:
        with pytest.raises(NotImplementedError, match=f"{type(algorithm).__name__} asks for no critic"):
            algorithm.value_loss(random_rows.values_BT, past, totals)


def test_algorithms_are_online_and_objectives_are_not() -> None:
    assert all(isinstance(algorithm, Algorithm) and algorithm.online for algorithm in ALGORITHMS.values())
    assert isinstance(SFT(), Objective) and not SFT.online
    assert SFT().initial_state() == AlgorithmState(kl_coef=0.0)
