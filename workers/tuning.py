"""Which numbers of a loaded model are learned: all, some layers, or an adapter on a base that may be quantized.

PEFT makes the adapters and bitsandbytes the quantized matrices, both in place: the model stays the object that it was,
and its body, its head and its scorers go on working.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from workers.adapters import ADAPTER, AdapterError, read_adapter
from workers.config import LoraInit, Quantization, TuningConfig, TuningMethod
from workers.heads import check_head
from workers.weight_sync import ADAPTER_PREFIX

if TYPE_CHECKING:
    from peft import PeftConfig

SCORE_HEAD = "score"
OUTLIER_THRESHOLD = 6.0
"""int8: inputs above it are multiplied in the model's own precision (2208.07339)."""

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[None]]
"""Makes parameters whole that a trainer keeps in parts; whoever changes them is rank 0."""


class TuningError(ValueError):
    """A tuning that this model cannot have: names what it lacks."""


def as_they_are(parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
    """Of a model whose parameters are whole."""
    return nullcontext()


def tune(model: PreTrainedModel, tuning: TuningConfig, *, seed: int, gather: Gather = as_they_are) -> None:
    """Merge the adapters of earlier runs, quantize the base, and choose what is learned, in place.

    A new adapter's random numbers come from `seed` alone: all ranks start from the same. A head that gives a score is
    learned as it is, whatever the method.
    Raises TuningError for names that the model does not have, AdapterError for a folder that holds no adapter, or one
    that cannot be gone on with.
    """
    merged = tuning.adapters[:-1] if tuning.continue_last else tuning.adapters
    if merged:
        merge_adapters(model, merged, gather=gather)
        model.requires_grad_(True)
    if tuning.method is TuningMethod.FREEZE:
        _freeze(model, tuning)
    elif tuning.has_adapter:
        config = _continued(model, tuning) if tuning.continue_last else _fresh(model, tuning)
        if tuning.quantization is not Quantization.NONE:
            _quantize(model, tuning)
        torch.manual_seed(seed)
        inject(model, config)
        check_head(model)
        if tuning.continue_last:
            load_adapter(model, tuning.adapters[-1])


@contextmanager
def adapter_off(model: PreTrainedModel) -> Iterator[None]:
    """The model without its adapter, for whoever only looks: the base that the run starts from."""
    # PEFT's own switch also turns gradients off and on again, which must not happen under DeepSpeed's hooks.
    switched = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    for module in switched:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module in switched:
            module._disable_adapters = False


# ----------------------------------------------------------------------------- adapters of earlier runs


def merge_adapters(model: PreTrainedModel, folders: Sequence[str], *, gather: Gather = as_they_are) -> None:
    """Add them to the model's own weights, one after the other, in place."""
    for folder in folders:
        from peft import PeftModel

        read_adapter(folder)
        with gather(list(model.parameters())):
            PeftModel.from_pretrained(model, folder).merge_and_unload()
        # Left behind, it would look like an adapter that is still there.
        model.__dict__.pop("peft_config", None)


def load_adapter(model: PreTrainedModel, folder: str) -> None:
    """What an adapter of the same shape has learned, into the model's own.

    Raises AdapterError when the folder's tensors are not those of the model's adapter.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    tensors = load_peft_weights(folder, device="cpu")
    found = {name.removeprefix(ADAPTER_PREFIX): tensor for name, tensor in tensors.items()}
    expected = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    if found.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        raise AdapterError(f"{folder} does not fit the model's adapter: missing {missing[:3]}, unknown {unknown[:3]}")
    set_peft_model_state_dict(model, found, adapter_name=ADAPTER)


# ----------------------------------------------------------------------------- some layers


def _freeze(model: PreTrainedModel, tuning: TuningConfig) -> None:
    """Only the chosen layers, or the named modules, are learned."""
    layers = _layers(model)
    if abs(tuning.layers) > len(layers):
        raise TuningError(f"tuning.layers is {tuning.layers}, and the model has {len(layers)} layers")
    chosen = [*layers][-tuning.layers :] if tuning.layers > 0 else [*layers][: -tuning.layers]
    learned = _named(model, layers, chosen, tuning.modules) if tuning.modules else chosen
    model.requires_grad_(False)
    for module in (*learned, *_score_head(model)):
        module.requires_grad_(True)


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    number = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return module
    raise TuningError(f"{type(model).__name__} has no list of {number} layers to choose from")


def _named(
    model: PreTrainedModel, layers: nn.ModuleList, chosen: list[nn.Module], names: list[str]
) -> Iterator[nn.Module]:
    """Parts of the chosen layers, and modules outside of all layers, by the end of their names."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    parts = [pair for layer in chosen for pair in layer.named_modules()]
    parts += [pair for pair in model.named_modules() if id(pair[1]) not in inside]
    for name in names:
        found = [module for path, module in parts if f".{path}".endswith(f".{name}")]
        if not found:
            raise TuningError(f"tuning.modules names {name}, which is neither in the chosen layers nor outside of them")
        yield from found


# ----------------------------------------------------------------------------- a new adapter


def _fresh(model: PreTrainedModel, tuning: TuningConfig) -> PeftConfig:
    from peft import LoraConfig, OFTConfig

    heads = [SCORE_HEAD] if _score_head(model) else []
    shared = {
        "base_model_name_or_path": model.name_or_path,
        "task_type": "SEQ_CLS" if heads else "CAUSAL_LM",
        "target_modules": _targets(model, tuning),
        "modules_to_save": [*_others(model, tuning.also_train), *heads] or None,
    }
    if tuning.method is TuningMethod.OFT:
        # Cayley's own formula: its series, which PEFT prefers for speed, is not quite a rotation.
        return OFTConfig(
            oft_block_size=tuning.block_size, module_dropout=tuning.dropout, use_cayley_neumann=False, **shared
        )
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha or 2 * tuning.rank,
        lora_dropout=tuning.dropout,
        use_rslora=tuning.rank_stabilized,
        use_dora=tuning.dora,
        init_lora_weights="pissa" if tuning.init is LoraInit.PISSA else True,
        **shared,
    )


def _continued(model: PreTrainedModel, tuning: TuningConfig) -> PeftConfig:
    """The last adapter's own settings; only how it is learned is this run's."""
    from peft import PeftConfig

    adapter = read_adapter(tuning.adapters[-1])
    config = PeftConfig.from_pretrained(str(adapter.path))
    config.inference_mode = False
    setattr(config, "lora_dropout" if adapter.method is TuningMethod.LORA else "module_dropout", tuning.dropout)
    if _score_head(model):
        config.modules_to_save = sorted({*(config.modules_to_save or ()), SCORE_HEAD})
    return config


def inject(model: PreTrainedModel, config: PeftConfig) -> None:
    """An adapter with these settings around the layers that they name, in place."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def _targets(model: PreTrainedModel, tuning: TuningConfig) -> list[str]:
    linear = {name.rpartition(".")[2]: module for name, module in _linear(model)}
    unknown = [name for name in tuning.targets if name not in linear]
    if unknown:
        raise TuningError(f"tuning.targets names {', '.join(unknown)}; the model's linear layers: {', '.join(linear)}")
    targets = tuning.targets or list(linear)
    for name in targets if tuning.method is TuningMethod.OFT else ():
        if linear[name].in_features % tuning.block_size:
            raise TuningError(
                f"tuning.block_size is {tuning.block_size}, and {name} reads {linear[name].in_features} numbers, "
                "which is not a multiple of it"
            )
    return sorted(targets)


def _others(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Modules that are learned as they are."""
    ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    unknown = [name for name in names if name not in ends]
    if unknown:
        raise TuningError(f"tuning.also_train names {', '.join(unknown)}, which the model does not have")
    heads = {"embed_tokens", "lm_head"} & set(names)
    if heads and model.config.get_text_config().tie_word_embeddings:
        raise TuningError(
            f"tuning.also_train names {', '.join(heads)}, and this model's head is its embedding: beside an adapter "
            "they would come apart. tuning=freeze with tuning.modules can learn them"
        )
    return names


def _linear(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear layer but the heads."""
    heads = [model.get_output_embeddings(), *_score_head(model)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(module is head for head in heads):
            yield name, module


def _score_head(model: PreTrainedModel) -> list[nn.Module]:
    head = getattr(model, SCORE_HEAD, None)
    return [head] if isinstance(head, nn.Module) else []


# ----------------------------------------------------------------------------- a quantized base


def _quantize(model: PreTrainedModel, tuning: TuningConfig) -> None:
    """Every linear layer but the heads, one after the other."""
    for name, linear in list(_linear(model)):
        model.set_submodule(name, _quantized(linear, tuning))
    # PEFT asks for these when it chooses the kind of an adapter.
    model.is_loaded_in_8bit = tuning.quantization is Quantization.INT8
    model.is_loaded_in_4bit = not model.is_loaded_in_8bit


def _quantized(linear: nn.Linear, tuning: TuningConfig) -> nn.Linear:
    import bitsandbytes as bnb

    # At every multiplication it would tell that its inputs are rounded.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    weight, sizes = linear.weight, (linear.in_features, linear.out_features, linear.bias is not None)
    if tuning.quantization is Quantization.INT8:
        layer = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta")
        packed = bnb.nn.Int8Params(weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(*sizes, compute_dtype=weight.dtype, device="meta")
        # On CPU it would repack its weights for looking, which then say something else than while learning.
        layer.support_avx512bf16_for_cpu = False
        packed = bnb.nn.Params4bit(
            weight.data,
            requires_grad=False,
            compress_statistics=tuning.double_quantization,
            quant_type=tuning.quantization.value,
            module=layer,
        )
    # The move quantizes, also to where it is.
    layer.weight = packed.to(weight.device)
    layer.bias, layer.compute_dtype = linear.bias, weight.dtype
    return layer
