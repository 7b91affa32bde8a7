"""What one trainer rank counts while it learns: the losses' metrics, and the figures that the invariants are about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from workers.records import Batch, Experience, Loss, TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What one rank saw while it learned from one batch."""

    contributions: Mapping[str, float]
    """Means over the step's updates; summed over ranks they give the step's figures."""
    maxima: Mapping[str, float]
    """Largest values seen; the largest over ranks is the step's figure."""
    action_tokens: int
    """Tokens that this rank's masks let through, to be compared with the totals that were announced."""
    skipped_updates: int
    """Optimizer steps that were left out because a gradient was not finite."""


class Tally:
    """Adds up one batch's figures on one rank."""

    def __init__(self, *, num_updates: int, num_compared: int = 0) -> None:
        """`num_compared`: action tokens that `add_mismatch` will be shown, on all ranks."""
        # A batch without a single one of them has figures of 0, not 0/0.
        self._num_updates, self._num_compared = num_updates, max(num_compared, 1)
        self._contributions: defaultdict[str, float] = defaultdict(float)
        self._maxima: defaultdict[str, float] = defaultdict(float)
        self._action_tokens = 0
        self._skipped_updates = 0

    def add_tokens(self, count: int) -> None:
        self._action_tokens += count

    def add_loss(self, loss: Loss) -> None:
        self._contributions["loss"] += float(loss.value.detach()) / self._num_updates
        for name, value in loss.metrics.items():
            self._contributions[name] += float(value) / self._num_updates

    def add_mismatch(self, trainer_BT: Tensor, batch: Batch, *, version: int) -> None:
        """How far the trainer's log-probs of the sampled tokens lie from the rollout engine's.

        Of responses sampled by the weights `version` alone: older ones lie apart for another reason.
        `k3` estimates KL(rollout || trainer) from the rollout's own samples (http://joschu.net/blog/kl-approx.html).
        """
        gap_N = (trainer_BT.detach() - batch.rollout_logprobs_BT)[batch.sampled_by_BT(version)].double()
        self._contributions["logprob_gap_mean"] += float(gap_N.abs().sum()) / self._num_compared
        self._contributions["logprob_gap_k3"] += float((gap_N.exp() - gap_N - 1.0).sum()) / self._num_compared
        if len(gap_N):
            self._maximum("logprob_gap_max", float(gap_N.abs().max()))

    def add_ratio(self, policy: TokenLogprobs, past: Experience) -> None:
        """How far the ratio lies from 1 where it must be 1: on the first update after a recomputation."""
        mask_BT = past.batch.mask_BT
        delta_N = (policy.logprobs_BT.detach() - past.outputs.old_logprobs_BT)[mask_BT]
        if len(delta_N):
            self._maximum("ratio_deviation", float(delta_N.expm1().abs().max()))

    def add_step(self, *, gradient_norm: float, learning_rate: float, skipped: bool, is_first_rank: bool) -> None:
        """Figures that all ranks share are contributed by the first."""
        self._skipped_updates += skipped
        if is_first_rank:
            self._contributions["gradient_norm"] += gradient_norm / self._num_updates
            self._contributions["learning_rate"] += learning_rate / self._num_updates

    def report(self) -> UpdateReport:
        return UpdateReport(
            contributions=dict(self._contributions),
            maxima=dict(self._maxima),
            action_tokens=self._action_tokens,
            skipped_updates=self._skipped_updates,
        )

    def _maximum(self, name: str, value: float) -> None:
        # A comparison with NaN is False, so NaN must win by itself.
        self._maxima[name] = value if value != value else max(self._maxima[name], value)
