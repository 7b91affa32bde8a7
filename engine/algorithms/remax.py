"""ReMax: REINFORCE with the policy's own best guess as baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from engine.algorithms.base import Outcomes
from engine.algorithms.reinforce_pp import ReinforcePP
from workers.records import AlgorithmState, Batch, Credit, ModelOutputs, Needs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReMax(ReinforcePP):
    """2310.10505, Algorithm 1: a response is worth how much better it did than the greedy one to the same prompt.

    One more response a prompt is generated without chance and judged, and not learned from. A token's credit is the
    reward still to come minus that baseline. Nothing is normalised.
    """

    whiten: bool = False

    @property
    def needs(self) -> Needs:
        return replace(super().needs, greedy=True)

    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        return outcomes.score_B - outcomes.greedy_B

    def token_credit(self, batch: Batch, outputs: ModelOutputs, advantage_B: Tensor, state: AlgorithmState) -> Credit:
        to_go_BT = super().token_credit(batch, outputs, advantage_B, state).returns_BT
        greedy_B = batch.reward_B - advantage_B
        advantages_BT = (to_go_BT - greedy_B.unsqueeze(-1)).masked_fill(~batch.mask_BT, 0.0)
        return Credit(advantages_BT=advantages_BT, returns_BT=to_go_BT)
