"""What every algorithm shares: outcomes are finite, credit is selected, groups are kept, state stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_rows import Rows

from engine.algorithms.base import Algorithm, Objective, Outcomes
from engine.algorithms.grpo import GRPO
from engine.algorithms.sft import SFT
from workers.records import AlgorithmState, GroupSummary


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_an_outcome_without_a_finite_score_is_refused_by_row(score: float) -> None:
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        Outcomes(score_B=np.array([1.0, score]), length_B=np.array([3, 3]), group_B=np.array([0, 0]))


def test_every_action_token_gets_its_rows_advantage_and_nothing_else_gets_any(random_rows: Rows) -> None:
    advantage_B = torch.tensor([0.5, float("nan"), -1.0, 2.0, 0.0, 3.0])
    mask_BT = random_rows.mask_BT.clone()
    mask_BT[1] = False
    batch = replace(random_rows.batch(), advantage_B=advantage_B, mask_BT=mask_BT)
    credit = GRPO().token_credit(batch, random_rows.experience().outputs)
    assert credit.advantages_BT.shape == mask_BT.shape
    assert credit.advantages_BT.dtype == advantage_B.dtype
    assert (credit.advantages_BT[~mask_BT] == 0).all()
    for row in (0, 2, 3, 4, 5):
        assert set(credit.advantages_BT[row][mask_BT[row]].tolist()) == {advantage_B[row].item()}


def test_by_default_every_group_is_kept_and_the_state_stays() -> None:
    summary = GroupSummary(
        draw=7,
        prompt_id="arithmetic-7",
        score_G=np.array([1.0, 1.0]),
        length_G=np.array([3, 3]),
        action_tokens_G=np.array([3, 3]),
        prompt_length=9,
        truncated_G=np.array([False, False]),
        version=2,
        failures=(),
        parts={"correct": 1.0},
        judging_s=0.0,
    )
    assert GRPO().keep(summary) is None
    assert GRPO().next_state(AlgorithmState(kl_coef=0.3), {"kl": 9.0}) == AlgorithmState(kl_coef=0.3)


def test_algorithms_are_online_and_objectives_are_not() -> None:
    assert isinstance(GRPO(), Algorithm) and GRPO.online and GRPO.min_group_size == 2
    assert isinstance(SFT(), Objective) and not SFT.online
