"""What no run can learn: checks of `tuning` alone, with the trainer, and with what the model is made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config_error import ConfigError
from engine.sizes import ModelSizes
from workers.adapters import AdapterError, read_adapter, why_merged
from workers.config import LoraInit, Quantization, TuningConfig, TuningMethod

if TYPE_CHECKING:
    from engine.config import Config

LORA, OFT, FREEZE = TuningMethod.LORA, TuningMethod.OFT, TuningMethod.FREEZE
OF_METHODS = {
    "layers": (FREEZE,),
    "modules": (FREEZE,),
    "rank": (LORA,),
    "alpha": (LORA,),
    "dropout": (LORA, OFT),
    "targets": (LORA, OFT),
    "also_train": (LORA, OFT),
    "rank_stabilized": (LORA,),
    "dora": (LORA,),
    "init": (LORA,),
    "block_size": (OFT,),
    "continue_last": (LORA, OFT),
    "quantization": (LORA, OFT),
}
"""The methods that a setting says anything to."""


def check_tuning(config: Config) -> None:
    """Raises a ConfigError for the first thing that cannot be."""
    _check_numbers(config.tuning)
    _check_method(config.tuning)
    _check_trainer(config)
    if config.algo.online:
        _check_online(config)


def check_earlier_adapters(config: Config) -> None:
    """That each of `tuning.adapters` is there, and that the last one can be gone on with."""
    tuning = config.tuning
    for path in tuning.adapters:
        try:
            adapter = read_adapter(path)
        except AdapterError as error:
            raise ConfigError(
                f"tuning.adapters: {error}.",
                keys=("tuning.adapters",),
                advice=f"Give folders in PEFT's layout, as a run's export is (paths are relative to {Path.cwd()}).",
            ) from None
    if tuning.continue_last and adapter.has_dora_head:
        raise ConfigError(
            f"tuning.continue_last is true, and {adapter.path} holds DoRA on lm_head, through which the tokens' "
            "log-probs cannot be read.",
            keys=("tuning.continue_last", "tuning.adapters"),
            advice="Set tuning.continue_last=false to merge it and start a new one.",
        )
    if tuning.continue_last and adapter.method is not tuning.method:
        raise ConfigError(
            f"tuning.continue_last is true, tuning.method is {tuning.method.value}, and {adapter.path} holds "
            f"{adapter.method.value}.",
            keys=("tuning.continue_last", "tuning.method", "tuning.adapters"),
            advice=f"Set tuning={adapter.method.value}, or tuning.continue_last=false to merge it and start a new one.",
        )


def check_tuning_fits(config: Config, sizes: ModelSizes) -> None:
    """What the policy's own sizes forbid; nothing where they are not known."""
    tuning = config.tuning
    if not sizes.are_known:
        return
    if tuning.method is FREEZE and abs(tuning.layers) > sizes.layers:
        raise ConfigError(
            f"tuning.layers is {tuning.layers}, and {config.model.path} has {sizes.layers} layers.",
            keys=("tuning.layers", "model.path"),
            advice=f"Set a number between -{sizes.layers} and {sizes.layers}.",
        )
    widths = (sizes.hidden, sizes.intermediate, sizes.heads * sizes.head_dimension)
    if tuning.method is OFT and not tuning.targets and any(width % tuning.block_size for width in widths):
        raise ConfigError(
            f"tuning.block_size is {tuning.block_size}, and the matrices of {config.model.path} read "
            f"{', '.join(map(str, sorted(set(widths))))} numbers, of which it must be a divisor.",
            keys=("tuning.block_size", "model.path"),
            advice=f"Set tuning.block_size={math.gcd(tuning.block_size, *widths)}, or tuning.targets.",
        )
    heads = {"embed_tokens", "lm_head"} & set(tuning.also_train)
    if heads and sizes.tied_embeddings:
        raise ConfigError(
            f"tuning.also_train names {', '.join(sorted(heads))}, and the head of {config.model.path} is its "
            "embedding: beside an adapter they would come apart.",
            keys=("tuning.also_train", "model.path"),
            advice="Leave them out, or learn them with tuning=freeze tuning.layers=0 tuning.modules=[embed_tokens].",
        )


def _check_numbers(tuning: TuningConfig) -> None:
    if tuning.rank < 1:
        raise ConfigError(f"tuning.rank is {tuning.rank}.", keys=("tuning.rank",), advice="Set 1 or more, such as 8.")
    if not (math.isfinite(tuning.alpha) and tuning.alpha >= 0):
        raise ConfigError(
            f"tuning.alpha is {tuning.alpha}.",
            keys=("tuning.alpha",),
            advice="Set a number above 0, or 0 for twice the rank.",
        )
    if not 0 <= tuning.dropout < 1:
        raise ConfigError(
            f"tuning.dropout is {tuning.dropout}, and a share is from 0 to below 1.",
            keys=("tuning.dropout",),
            advice="Set 0, or a small share such as 0.05.",
        )
    if tuning.block_size < 2:
        raise ConfigError(
            f"tuning.block_size is {tuning.block_size}, and one number cannot be rotated.",
            keys=("tuning.block_size",),
            advice="Set 2 or more, such as 32.",
        )


def _check_method(tuning: TuningConfig) -> None:
    """That what is set says something to the method."""
    default, method = TuningConfig(), tuning.method
    if tuning.quantization is not Quantization.NONE and not tuning.has_adapter:
        raise ConfigError(
            f"tuning.quantization is {tuning.quantization.value} and tuning.method is {method.value}: quantized "
            "weights cannot be learned, and there is no adapter that could.",
            keys=("tuning.quantization", "tuning.method", "tuning"),
            advice="Set tuning=qlora or tuning=qoft, or tuning.quantization=none.",
        )
    for name, methods in OF_METHODS.items():
        if getattr(tuning, name) != getattr(default, name) and method not in methods:
            value = getattr(tuning, name)
            raise ConfigError(
                f"tuning.{name} is {getattr(value, 'value', value)}, which says nothing to tuning.method="
                f"{method.value}.",
                keys=(f"tuning.{name}", "tuning.method", "tuning"),
                advice=f"Leave it out, or set tuning.method={' or '.join(method.value for method in methods)}.",
            )
    if tuning.init is LoraInit.PISSA and tuning.quantization is not Quantization.NONE:
        raise ConfigError(
            f"tuning.init is pissa and tuning.quantization is {tuning.quantization.value}: the matrix's principal "
            "components must be taken out before it is quantized, which is not supported.",
            keys=("tuning.init", "tuning.quantization"),
            advice="Set tuning.init=zero, or tuning.quantization=none.",
        )
    if tuning.init is LoraInit.PISSA and tuning.dora:
        raise ConfigError(
            "tuning.init is pissa and tuning.dora is true: DoRA would measure the lengths of what PiSSA leaves over.",
            keys=("tuning.init", "tuning.dora"),
            advice="Choose one of them.",
        )
    if tuning.continue_last and not tuning.adapters:
        raise ConfigError(
            "tuning.continue_last is true, and tuning.adapters names none to go on with.",
            keys=("tuning.continue_last", "tuning.adapters"),
            advice="Set tuning.adapters=[path/to/an/adapter].",
        )


def _check_trainer(config: Config) -> None:
    tuning, zero_stage = config.tuning, config.train.zero_stage
    if zero_stage == 3 and tuning.quantization is not Quantization.NONE:
        raise ConfigError(
            f"tuning.quantization is {tuning.quantization.value} and train.zero_stage is 3: DeepSpeed cannot deal out "
            "matrices whose scales lie beside them.",
            keys=("tuning.quantization", "train.zero_stage"),
            advice="Set train.zero_stage=2: a quantized base is small, and only the adapter has an optimizer.",
        )
    if zero_stage == 3 and tuning.init is LoraInit.PISSA:
        raise ConfigError(
            "tuning.init is pissa and train.zero_stage is 3: no rank holds a whole matrix to take apart.",
            keys=("tuning.init", "train.zero_stage"),
            advice="Set train.zero_stage=2, or tuning.init=zero.",
        )


def _check_online(config: Config) -> None:
    tuning = config.tuning
    if tuning.dropout > 0:
        raise ConfigError(
            f"tuning.dropout is {tuning.dropout}, and {type(config.algo).__name__} compares the policy with what it "
            "was at the start of the step: without an update that ratio must be 1.",
            keys=("tuning.dropout", "algo"),
            advice="Set tuning.dropout=0; offline stages may use it.",
        )
    every_steps = config.algo.reference_refresh.every_steps
    if tuning.has_adapter and every_steps:
        raise ConfigError(
            f"algo.reference_refresh.every_steps is {every_steps} and tuning.method is {tuning.method.value}: the "
            "reference is the model without its adapter, which cannot follow.",
            keys=("algo.reference_refresh.every_steps", "tuning.method", "tuning"),
            advice="Set algo.reference_refresh.every_steps=0, or tuning=full.",
        )


def told(config: Config) -> str:
    """What is learned and what travels to the rollout engines, in words; empty where that is the whole model.

    Example:
        lora on nf4: adapter tensors alone travel to the rollout engines, and the reference is the model without them
    """
    tuning = config.tuning
    if tuning.method is TuningMethod.FULL:
        return ""
    name = tuning.method.value
    if tuning.quantization is not Quantization.NONE:
        name += f" on {tuning.quantization.value}"
    if not config.algo.online:
        return f"{name}: the rest of the model stays as it is"
    parts = [_travels(tuning)]
    if config.algo.needs.reference:
        own = tuning.is_own_reference
        parts.append("the reference is the model without it" if own else "the reference is a frozen copy of the model")
    return f"{name}: {', and '.join(parts)}"


def _travels(tuning: TuningConfig) -> str:
    if not tuning.has_adapter:
        return "the whole model travels to the rollout engines"
    why = why_merged(tuning)
    if why:
        return f"rollout engines cannot serve {why} apart, so it is merged and all weights travel to them"
    base = ", the dequantized base once before" if tuning.quantization is not Quantization.NONE else ""
    return f"only the adapter's tensors travel to the rollout engines{base}"
