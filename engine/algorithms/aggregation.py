"""From a loss per token to a micro-batch's share of the optimizer step's loss.

Every share is divided by the totals of the whole optimizer step, never by counts of the micro-batch, so the sum over
micro-batches and ranks does not depend on how rows were split, ordered or padded.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from workers.records import Batch, Totals

if TYPE_CHECKING:
    from torch import Tensor


class Aggregation(Enum):
    """Who weighs the same: tokens, sequences, or prompts."""

    TOKEN_MEAN = "token-mean"
    """Every token: a long response counts for more (DAPO, 2503.14476 Eq. 8)."""
    SEQ_MEAN_TOKEN_SUM = "seq-mean-token-sum"
    """The sum over a sequence's tokens, averaged over sequences: the gradient of the policy's expected score."""
    SEQ_MEAN_TOKEN_MEAN = "seq-mean-token-mean"
    """Every sequence: a token of a long response counts for less (GRPO, 2402.03300 Eq. 3)."""
    SEQ_MEAN_TOKEN_SUM_NORM = "seq-mean-token-sum-norm"
    """As the sum, divided by the constant length limit (Dr. GRPO, 2503.20783)."""
    PROMPT_MEAN = "prompt-mean"
    """Every prompt: the mean over prompts of the token mean inside each."""


def aggregate(loss_BT: Tensor, batch: Batch, totals: Totals, mode: Aggregation) -> Tensor:
    """The scalar contribution of these rows. Masked positions do not count, whatever they hold."""
    mask_BT = batch.mask_BT
    loss_BT = loss_BT.masked_fill(~mask_BT, 0.0)
    # A step without a single action token has loss 0, not 0/0.
    tokens, sequences, prompts = (max(count, 1) for count in (totals.tokens, totals.sequences, totals.prompts))
    match mode:
        case Aggregation.TOKEN_MEAN:
            return loss_BT.sum() / tokens
        case Aggregation.SEQ_MEAN_TOKEN_SUM:
            return loss_BT.sum() / sequences
        case Aggregation.SEQ_MEAN_TOKEN_MEAN:
            length_B = mask_BT.sum(dim=-1).clamp(min=1)
            return (loss_BT.sum(dim=-1) / length_B).sum() / sequences
        case Aggregation.SEQ_MEAN_TOKEN_SUM_NORM:
            return loss_BT.sum() / (sequences * totals.horizon)
        case Aggregation.PROMPT_MEAN:
            return (loss_BT.sum(dim=-1) / batch.prompt_tokens_B.clamp(min=1)).sum() / prompts


def token_mean(value_BT: Tensor, batch: Batch, totals: Totals) -> Tensor:
    """A metric's contribution: the mean over the step's action tokens, without gradient."""
    return aggregate(value_BT.detach(), batch, totals, Aggregation.TOKEN_MEAN)
