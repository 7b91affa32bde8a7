"""The optimizer: AdamW, its learning-rate schedule, and the gradient check that DeepSpeed lacks without ZeRO."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter

from workers.config import Schedule, TrainConfig


def learning_rate(config: TrainConfig, *, update: int, total_updates: int) -> float:
    """Of optimizer step `update` (from 0): a linear rise to the full rate, then the schedule down to its final share.

    >>> config = TrainConfig(learning_rate=1.0, warmup_updates=2, schedule=Schedule.LINEAR)
    >>> [learning_rate(config, update=update, total_updates=6) for update in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warmup = max(config.warmup_updates, math.ceil(config.warmup_share * total_updates))
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    progress = (update - warmup) / max(1, total_updates - warmup)
    remaining = {
        Schedule.CONSTANT: 1.0,
        Schedule.LINEAR: 1.0 - progress,
        Schedule.COSINE: 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))),
    }[config.schedule]
    share = config.final_learning_rate_share
    return config.learning_rate * (share + (1.0 - share) * max(0.0, remaining))


class CheckedAdamW(torch.optim.AdamW):
    """AdamW that clips by global norm and refuses a gradient that is not finite.

    DeepSpeed does both for ZeRO 1-3; without ZeRO in float32 it reports no norm and skips no step. It reads `overflow`
    and `_global_grad_norm` from whatever optimizer it is given, so this one speaks the same language.
    """

    def __init__(self, parameters: Iterable[Parameter], *, max_grad_norm: float, **settings: object) -> None:
        super().__init__(parameters, **settings)
        self.max_grad_norm = max_grad_norm
        self.overflow = False
        self._global_grad_norm = 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if self.overflow:
            return
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        super().step()


def optimizer_settings(config: TrainConfig) -> dict[str, object]:
    """Of each group of parameters, beside its learning rate, which is set anew for each step."""
    return {"betas": tuple(config.betas), "eps": config.eps, "weight_decay": config.weight_decay}


def make_optimizer(parameters: list[Parameter], config: TrainConfig) -> torch.optim.AdamW:
    settings = {"lr": config.learning_rate, **optimizer_settings(config)}
    if config.zero_stage == 0:
        return CheckedAdamW(parameters, max_grad_norm=config.max_grad_norm, **settings)
    return torch.optim.AdamW(parameters, **settings)


def deepspeed_settings(config: TrainConfig, *, bfloat16: bool) -> dict[str, object]:
    """DeepSpeed's configuration. `backward` may be called any number of times before `step`, and divides by nothing
    but the number of ranks."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm if config.zero_stage > 0 else 0.0,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bfloat16},
        "steps_per_print": 1_000_000_000,
    }
