"""What every algorithm answers: which models it needs, what an outcome is worth, and the loss.

An algorithm is a frozen dataclass of settings. `advantage` runs on the driver and sees numbers of the whole rollout
batch; `token_credit` and `policy_loss` run on the trainer rank that owns the rows and see tensors. What changes during
a run is an `AlgorithmState`, passed in and returned, so that a checkpoint can hold it.

Array and tensor suffixes: `B` responses, `T` token positions of a response (right-padded).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from workers.records import (
    AlgorithmState,
    Batch,
    Credit,
    Experience,
    GroupSummary,
    Loss,
    ModelOutputs,
    Needs,
    TokenLogprobs,
    Totals,
)


class InvalidSetting(ValueError):
    """A setting that an algorithm cannot work with: says which, its value, and what to choose instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """How the judged responses of one whole rollout batch ended, one entry a response, in any order.

    Example (a group of two and a group of one, whose sibling could not be judged):
        Outcomes(score_B=[1.0, 0.0, 0.5], length_B=[3, 5, 4], group_B=[7, 7, 8])
    """

    score_B: np.ndarray
    """float64, finite: a response without a score is not an outcome."""
    length_B: np.ndarray
    """int64: action tokens."""
    group_B: np.ndarray
    """int64: the draw; siblings share it."""

    def __post_init__(self) -> None:
        # One NaN would spread to all its siblings, and be trained on before anybody sees it.
        if not np.isfinite(self.score_B).all():
            rows = np.flatnonzero(~np.isfinite(self.score_B)).tolist()
            raise ValueError(f"scores must be finite, but those of rows {rows} are not: leave unjudged responses out")


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """Learns from responses that the policy samples during the run."""

    online: ClassVar[bool] = True
    min_group_size: ClassVar[int] = 1
    """Fewest responses per prompt that its advantage is defined for."""

    @property
    @abstractmethod
    def needs(self) -> Needs: ...

    def keep(self, summary: GroupSummary) -> str | None:
        """Why a group is not worth learning from, in a word or two for the metrics; None keeps it."""
        return None

    @abstractmethod
    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        """[B] float64: what each response is worth, judged on the whole rollout batch."""

    def token_credit(self, batch: Batch, outputs: ModelOutputs) -> Credit:
        """Every action token of a response shares the response's advantage."""
        # Selected, not multiplied by the mask: 0 * NaN is NaN.
        return Credit(advantages_BT=batch.advantage_B.unsqueeze(-1).where(batch.mask_BT, 0.0))

    @abstractmethod
    def policy_loss(
        self, policy: TokenLogprobs, experience: Experience, totals: Totals, state: AlgorithmState
    ) -> Loss: ...

    def initial_state(self) -> AlgorithmState:
        return AlgorithmState(kl_coef=0.0)

    def next_state(self, state: AlgorithmState, metrics: Mapping[str, float]) -> AlgorithmState:
        """The state after a step whose summed metrics are `metrics`."""
        return state


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Learns from the tokens of a data set; nothing is sampled."""

    online: ClassVar[bool] = False

    def initial_state(self) -> AlgorithmState:
        return AlgorithmState(kl_coef=0.0)

    @abstractmethod
    def loss(self, policy: TokenLogprobs, batch: Batch, totals: Totals) -> Loss: ...
