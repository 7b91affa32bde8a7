"""A tuned model's weights as others read them: under the checkpoint's own names, adapter merged or apart.

Whatever is merged or dequantized is so for one tensor at a time, and the model itself does not change.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.adapters import ADAPTER, CONFIG_FILE, TENSORS_FILE
from workers.tuning import Gather, as_they_are, inject, load_adapter
from workers.weight_sync import ADAPTER_PREFIX

QUANTIZED = ("Params4bit", "Int8Params")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    """One tensor of the checkpoint, and how to get it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parameters: list[nn.Parameter]
    """That must be whole while it is read."""
    read: Callable[[], Tensor]

    @property
    def is_learned(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters)


def whole_weights(
    model: PreTrainedModel, *, merged: bool = True, learned_only: bool = False, gather: Gather = as_they_are
) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its checkpoint name, whole while it is looked at; `merged`: with what the adapter adds;
    `learned_only`: without those that training leaves as they are.

    A collective call where parameters are in parts: every rank goes through all of them.
    """
    for weight in _weights(model, merged=merged):
        if learned_only and not weight.is_learned:
            continue
        with gather(weight.parameters):
            yield weight.name, weight.read()


def shapes_of(model: PreTrainedModel) -> Iterator[Tensor]:
    """Tensors without content, of the shapes and types that `whole_weights` gives."""
    for weight in _weights(model, merged=True):
        yield torch.empty(weight.shape, dtype=weight.dtype, device="meta")


def adapter_tensors(model: PreTrainedModel, *, gather: Gather = as_they_are) -> dict[str, Tensor]:
    """What the adapter has learned, heads that are learned beside it included, under the names of PEFT's file."""
    from peft import get_peft_model_state_dict

    learned = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with gather([parameter]):
                learned[name] = parameter.detach().cpu().clone()
    tensors = get_peft_model_state_dict(model, state_dict=learned, adapter_name=ADAPTER, save_embedding_layers=False)
    return {f"{ADAPTER_PREFIX}{name}": tensor for name, tensor in tensors.items()}


def adapter_settings(model: PreTrainedModel) -> str:
    """Its adapter_config.json."""
    with tempfile.TemporaryDirectory() as folder:
        model.peft_config[ADAPTER].save_pretrained(folder)
        settings = json.loads((Path(folder) / CONFIG_FILE).read_text())
    return json.dumps({**settings, "inference_mode": True}, indent=2, sort_keys=True)


def serve_adapter(model: PreTrainedModel, tensors: dict[str, Tensor], settings: str) -> None:
    """These tensors as the model's adapter, which it gets if it has none."""
    from peft import PeftConfig

    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder), tensors, settings)
        if not hasattr(model, "peft_config"):
            inject(model, PeftConfig.from_pretrained(folder))
        load_adapter(model, folder)


def write_adapter(folder: Path, tensors: dict[str, Tensor], settings: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(settings)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS_FILE)


# ----------------------------------------------------------------------------- one weight after the other


def _weights(model: PreTrainedModel, *, merged: bool) -> Iterator[_Weight]:
    seen: set[int] = set()
    for weight in _below(model, "", merged=merged):
        # A head that is the embedding is one weight.
        if len(weight.parameters) > 1 or id(weight.parameters[0]) not in seen:
            seen |= {id(parameter) for parameter in weight.parameters}
            yield weight


def _below(module: nn.Module, path: str, *, merged: bool) -> Iterator[_Weight]:
    """Of a module and those inside it, as if nobody had tuned them."""
    kept = getattr(module, "modules_to_save", None)
    if isinstance(kept, nn.ModuleDict):
        yield from _below(kept[ADAPTER] if merged else module.original_module, path, merged=merged)
        return
    base = module.base_layer if _is_tuned(module) else module
    for name, parameter in base.named_parameters(recurse=False):
        if name == "weight" and merged and base is not module:
            own = [part for part in module.parameters() if part is not base.bias]
            yield _matrix(base, f"{path}{name}", own, lambda: _merged(module))
        elif type(parameter).__name__ in QUANTIZED:
            yield _matrix(base, f"{path}{name}", [parameter], lambda: _dequantized(base))
        else:
            yield _as_it_is(f"{path}{name}", parameter)
    if base is module:
        for name, child in module.named_children():
            yield from _below(child, f"{path}{name}.", merged=merged)


def _is_tuned(module: nn.Module) -> bool:
    return isinstance(getattr(module, "base_layer", None), nn.Module)


def _as_it_is(name: str, parameter: nn.Parameter) -> _Weight:
    # Under ZeRO-3 a parameter is empty until it is gathered, and keeps its shape elsewhere.
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    return _Weight(
        name=name, shape=shape, dtype=parameter.dtype, parameters=[parameter], read=lambda: parameter.detach()
    )


def _matrix(base: nn.Linear, name: str, parameters: list[nn.Parameter], read: Callable[[], Tensor]) -> _Weight:
    return _Weight(
        name=name,
        shape=(base.out_features, base.in_features),
        dtype=_dtype(base),
        parameters=parameters,
        read=read,
    )


def _dtype(base: nn.Linear) -> torch.dtype:
    """Of the weight when it is not quantized."""
    if type(base.weight).__name__ == "Params4bit":
        return base.weight.quant_state.dtype
    return base.compute_dtype if type(base.weight).__name__ == "Int8Params" else base.weight.dtype


def _dequantized(base: nn.Linear) -> Tensor:
    from peft.utils.integrations import dequantize_bnb_weight

    if type(base.weight).__name__ not in QUANTIZED:
        return base.weight.detach()
    return dequantize_bnb_weight(base.weight, state=getattr(base, "state", None)).to(_dtype(base))


@torch.no_grad()
def _merged(layer: nn.Module) -> Tensor:
    """PEFT's own merge, into a stand-in for the base layer."""
    from peft.tuners import lora, oft

    kind = oft.layer.Linear if hasattr(layer, "oft_R") else lora.layer.Linear
    with _stand_in(layer) as base:
        kind.merge(layer, safe_merge=True)
        return base.weight.data


@contextmanager
def _stand_in(layer: nn.Module) -> Iterator[nn.Linear]:
    """A plain matrix in place of the base layer, which may be quantized and must not change."""
    base, backend = layer.base_layer, getattr(layer, "quantization_backend", None)
    plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(_dequantized(base), requires_grad=False)
    layer.base_layer, layer.quantization_backend = plain, None
    try:
        yield plain
    finally:
        layer.base_layer, layer.quantization_backend = base, backend
        layer.merged_adapters.clear()
