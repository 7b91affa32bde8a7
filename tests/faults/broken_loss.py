"""An algorithm whose loss is not finite in some steps: chosen by a run's YAML, as one of a person's own is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.algorithms.grpo import GRPO
from workers.records import AlgorithmState, Experience, Loss, TokenLogprobs, Totals


@dataclass(frozen=True, kw_only=True)
class BrokenLoss(GRPO):
    """Without a reference; the coefficient of its divergence counts the steps instead."""

    kl_coef: float = 0.0
    once: int = 0
    """A step (from 1) whose loss is not finite."""
    from_then_on: int = 0
    """The first of those that all are like that."""

    def policy_loss(self, policy: TokenLogprobs, experience: Experience, totals: Totals, state: AlgorithmState) -> Loss:
        loss, step = super().policy_loss(policy, experience, totals, state), state.kl_coef + 1
        is_broken = step == self.once or step >= self.from_then_on
        return replace(loss, value=loss.value * float("nan")) if is_broken else loss

    def next_state(self, state: AlgorithmState, metrics: Mapping[str, float]) -> AlgorithmState:
        return AlgorithmState(kl_coef=state.kl_coef + 1)
