"""CISPO: clip the importance weight, not the token."""

from __future__ import annotations

from dataclasses import dataclass

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.clipping import LOG_RATIO_LIMIT, TokenLoss, movement, ratio_of
from engine.algorithms.grpo import GRPO
from engine.algorithms.settings import InvalidSetting
from workers.records import Experience, TokenLogprobs


@dataclass(frozen=True, kw_only=True)
class CISPO(GRPO):
    """Clipped importance-sampled policy optimization (MiniMax-M1, 2506.13585, Eqs. 4-5).

    REINFORCE on every token, weighted with its clipped ratio: -sg[clip(ratio, 1 - low, 1 + high)] A log pi. A token
    whose probability moved far still teaches, with a bounded weight; PPO's clip would silence it. `clip_low=1` is no
    floor, and `ratio_cap` names the ceiling itself where peers do.
    """

    aggregation: Aggregation = Aggregation.TOKEN_MEAN
    clip_low: float = 1.0
    clip_high: float = 0.2
    kl_coef: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_dual:
            raise InvalidSetting(f"clip_dual is {self.clip_dual}: CISPO has no surrogate to clip; set it to 0")

    def token_loss(self, policy: TokenLogprobs, past: Experience) -> TokenLoss:
        ratio = ratio_of(policy, past)
        ratio_BT = ratio.log_ratio_BT.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        ceiling = self.ratio_cap or 1 + self.clip_high
        weight_BT = ratio_BT.clamp(1 - self.clip_low, ceiling)
        logprobs_BT = policy.logprobs_BT.masked_fill(~ratio.mask_BT, 0.0)
        return TokenLoss(
            loss_BT=-weight_BT * ratio.advantages_BT * logprobs_BT,
            metrics_BT={
                "clip_low": (ratio_BT < 1 - self.clip_low).to(ratio_BT.dtype),
                "clip_high": (ratio_BT > ceiling).to(ratio_BT.dtype),
                **movement(ratio),
                "ratio_mean": ratio_BT,
            },
        )
