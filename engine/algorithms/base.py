"""What every algorithm answers: what it needs, what an outcome is worth, who gets the credit, and the loss.

An algorithm is a frozen dataclass of settings. A step asks it four things, in this order:

    keep            driver   is this group worth learning from?
    advantage       driver   what is each response worth? Numbers of the whole rollout batch.
    token_credit    trainer  what is each token worth? Tensors of the rows that this rank owns.
    policy_loss     trainer  one micro-batch's share of the optimizer step's loss (and `value_loss`, the critic's)

What changes during a run is an `AlgorithmState`, passed in and returned, so that a checkpoint can hold it.
Array and tensor suffixes: `B` responses, `T` token positions of a response (right-padded).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from engine.algorithms.dynamic_sampling import DynamicSampling
from engine.algorithms.reference_refresh import ReferenceRefresh
from engine.algorithms.shaping import Shaping
from engine.data.base import Imitated, RowKind
from workers.lessons import Lesson, LessonBatch, OfflineNeeds
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

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """How the judged responses of one whole rollout batch ended, one entry a response, in any order.

    Example (a group of two and a group of one, whose sibling could not be judged):
        Outcomes(score_B=[1.0, 0.0, 0.5], greedy_B=[0.0, 0.0, 1.0], length_B=[3, 5, 4], group_B=[7, 7, 8])
    """

    score_B: np.ndarray
    """float64, finite: a response without a score is not an outcome. Shaped; for algorithms that give credit by the
    response, less what its divergence from the reference costs."""
    greedy_B: np.ndarray
    """float64: the score of the greedy response to the same prompt; NaN where the algorithm asked for none."""
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
    credits_tokens: ClassVar[bool] = False
    """Whether a divergence in the reward is charged where it occurs, token by token (returns, GAE). Otherwise a
    response's whole divergence is taken off its score before it is compared with others."""

    whiten: bool = False
    """Whether advantages are brought to mean 0 and variance 1 over all action tokens of the rollout batch."""
    whiten_ddof: int = 1
    """1 divides by one token less (an unbiased variance), 0 by all of them."""
    shaping: Shaping = field(default_factory=Shaping)
    """From a raw score to the reward that is learned from."""
    dynamic_sampling: DynamicSampling = field(default_factory=DynamicSampling)
    """Which groups are passed over, and for how long others are drawn instead."""
    reference_refresh: ReferenceRefresh = field(default_factory=ReferenceRefresh)
    """When the reference follows the policy."""

    @property
    @abstractmethod
    def needs(self) -> Needs: ...

    @property
    def charges_reward(self) -> bool:
        """Whether the divergence from the reference is taken off the reward."""
        return False

    @property
    def corrects(self) -> bool:
        """Whether its loss weighs responses for having been sampled with other probabilities than the trainer's."""
        return False

    def keep(self, summary: GroupSummary) -> str | None:
        """Why a group is not worth learning from, in a word or two for the metrics; None keeps it."""
        return self.dynamic_sampling.reason_to_drop(summary)

    @abstractmethod
    def advantage(self, outcomes: Outcomes) -> np.ndarray:
        """[B] float64: what each response is worth, judged on the whole rollout batch."""

    def divergence(self, batch: Batch, outputs: ModelOutputs) -> Tensor:
        """[B, T] per action token, how far the policy of this step's start is from the reference, where the reward is
        charged for it; zeros otherwise."""
        return batch.rollout_logprobs_BT.new_zeros(batch.mask_BT.shape)

    def token_credit(self, batch: Batch, outputs: ModelOutputs, advantage_B: Tensor, state: AlgorithmState) -> Credit:
        """Every action token of a response shares the response's advantage."""
        # Selected, not multiplied by the mask: 0 * NaN is NaN.
        advantages_BT = advantage_B.unsqueeze(-1).where(batch.mask_BT, 0.0)
        return Credit(advantages_BT=advantages_BT, returns_BT=advantages_BT)

    def counted(self, experience: Experience) -> Tensor:
        """[B, T] bool: the tokens that the losses look at and are divided by; asked where `needs.recount` says so."""
        return experience.batch.mask_BT

    @abstractmethod
    def policy_loss(
        self, policy: TokenLogprobs, experience: Experience, totals: Totals, state: AlgorithmState
    ) -> Loss: ...

    def value_loss(self, values_BT: Tensor, experience: Experience, totals: Totals) -> Loss:
        raise NotImplementedError(f"{type(self).__name__} asks for no critic")

    def trains_policy(self, step: int) -> bool:
        """Whether the policy learns in step `step` (from 0), or the critic alone."""
        return True

    def initial_state(self) -> AlgorithmState:
        return AlgorithmState(kl_coef=0.0)

    def next_state(self, state: AlgorithmState, metrics: Mapping[str, float]) -> AlgorithmState:
        """The state after a step whose metrics are `metrics`."""
        return state


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Learns from a data set as it is; nothing is sampled. A subclass of one of the two classes below."""

    online: ClassVar[bool] = False
    rows: ClassVar[RowKind]
    """What kind of rows it learns from."""
    min_lessons: ClassVar[int] = 1
    """Fewest lessons of an optimizer step that its loss is defined for."""

    def initial_state(self) -> AlgorithmState:
        return AlgorithmState(kl_coef=0.0)

    @property
    def imitated(self) -> Imitated:
        """What it learns of a conversation."""
        return Imitated(last_answer_only=False, prompt_too=False)

    def assemble(self, lessons: Sequence[Lesson]) -> list[Lesson]:
        """The lessons of one optimizer step, with what they must be compared with."""
        return list(lessons)


@dataclass(frozen=True, kw_only=True)
class LanguageObjective(Objective):
    """Learns to write: its loss is over the log-probs of the rows' tokens."""

    @property
    def needs(self) -> OfflineNeeds:
        return OfflineNeeds()

    @abstractmethod
    def loss(self, policy: TokenLogprobs, lessons: LessonBatch, totals: Totals, reference_point: float) -> Loss:
        """A micro-batch's share of the step's loss. `lessons` has no mismatched rows; `totals` counts `prompts` in
        lessons; `reference_point` is 0 where `needs` does not ask for it."""


@dataclass(frozen=True, kw_only=True)
class ScoreObjective(Objective):
    """Learns to judge: its loss is over one number a row, read at the row's last token (a head in place of the
    language model's)."""

    @abstractmethod
    def loss(self, score_B: Tensor, lessons: LessonBatch, totals: Totals) -> Loss:
        """A micro-batch's share of the step's loss. `totals` counts `prompts` in lessons."""
