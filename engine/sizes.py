"""What a model is made of, so that its need is told before anything loads it.

The numbers come from the model's own folder where there is one (`config.json` and the headers of its safetensors), and
from its file in conf/model where it is a hub id. Nothing here asks a hub, or imports more than json and yaml.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config_error import ConfigError

REQUIRED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
"""Of a config.json, under AutoConfig's names; an architecture that names them otherwise is not told."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
TIED_BY_DEFAULT = {"cohere", "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3_text", "smollm3", "starcoder2"}
"""Architectures whose head is the embedding unless their config.json says otherwise."""
HEADER_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """The sizes of the model at `model.path`; all 0 where nobody told them (a hub id without a file in conf/model).

    Example:
        ModelSizes(layers=24, hidden=896, intermediate=4864, heads=14, key_value_heads=2, head_dimension=64,
                   vocabulary=151936, tied_embeddings=True, positions=32768, parameters=494032768)
    """

    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    """Width of the feed-forward block."""
    heads: int = 0
    """Attention heads."""
    key_value_heads: int = 0
    head_dimension: int = 0
    vocabulary: int = 0
    tied_embeddings: bool = False
    """Whether the output head is the embedding."""
    positions: int = 0
    """Most tokens of one sequence; 0 where that is not told, or stretched by a rope of another type."""
    parameters: int = 0
    """All of them, a tied head counted once."""

    @property
    def are_known(self) -> bool:
        return self.parameters > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedModel:
    """One file of conf/model.

    Example:
        ShippedModel(name="qwen2.5-0.5b", path="Qwen/Qwen2.5-0.5B-Instruct", cluster="one_gpu", sizes=ModelSizes(...))
    """

    name: str
    path: str
    cluster: str
    """The option of conf/cluster that it chooses; empty where it leaves the choice."""
    sizes: ModelSizes


@functools.cache
def shipped_models(conf: Path) -> tuple[ShippedModel, ...]:
    """Every model that has a file in conf/model and its sizes in it, the smallest first."""
    models = []
    for file in (conf / "model").glob("*.yaml"):
        content = yaml.safe_load(file.read_text())
        if "sizes" in content:
            choices = {group: option for entry in content.get("defaults", ()) for group, option in entry.items()}
            cluster = choices.get("override /cluster", "")
            sizes = ModelSizes(**content["sizes"])
            models.append(ShippedModel(name=file.stem, path=content["model"]["path"], cluster=cluster, sizes=sizes))
    return tuple(sorted(models, key=lambda model: (model.sizes.parameters, model.name)))


def sizes_of(path: str, conf: Path, *, key: str) -> ModelSizes:
    """Of the model at a path: a folder tells its own, a hub id may have a file in conf/model. `key`: who names it."""
    if Path(path).is_dir():
        return read_sizes(Path(path), key=key)
    return next((model.sizes for model in shipped_models(conf) if model.path == path), ModelSizes())


def read_sizes(folder: Path, *, key: str = "model.path") -> ModelSizes:
    """The sizes of a Hugging Face folder: its config.json, and the parameters that its safetensors hold.

    All 0 for an architecture whose config.json does not hold them under the usual names.
    Raises ConfigError for a config.json that is not JSON.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ConfigError(
            f"{key} is {folder}, and its config.json cannot be read: {error}.",
            keys=(key,),
            advice="Give the folder of a Hugging Face model.",
        ) from error
    parameters = _stored_parameters(folder)
    if not all(isinstance(settings.get(key), int) for key in REQUIRED):
        return ModelSizes()
    if not parameters and any(settings.get(key) for key in EXPERTS):
        return ModelSizes()  # their number is not told by the sizes of a dense model
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    tied = settings.get("tie_word_embeddings")
    sizes = {
        "layers": settings["num_hidden_layers"],
        "hidden": hidden,
        "intermediate": settings["intermediate_size"],
        "heads": heads,
        "key_value_heads": settings.get("num_key_value_heads") or heads,
        "head_dimension": settings.get("head_dim") or hidden // heads,
        "vocabulary": settings["vocab_size"],
        "tied_embeddings": settings.get("model_type") in TIED_BY_DEFAULT if tied is None else tied,
        "positions": _positions(settings),
    }
    return ModelSizes(**sizes, parameters=parameters or _matrix_parameters(ModelSizes(**sizes)))


def _positions(settings: Mapping[str, Any]) -> int:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    is_plain = rope.get("rope_type", "default") == "default"
    return settings.get("max_position_embeddings") or 0 if is_plain else 0


def _matrix_parameters(sizes: ModelSizes) -> int:
    """The parameters of a dense decoder, norms and biases (less than a thousandth) left out."""
    queries, keys = sizes.heads * sizes.head_dimension, sizes.key_value_heads * sizes.head_dimension
    layer = sizes.hidden * (2 * queries + 2 * keys + 3 * sizes.intermediate)
    embeddings = 1 if sizes.tied_embeddings else 2
    return sizes.layers * layer + embeddings * sizes.vocabulary * sizes.hidden


def _stored_parameters(folder: Path) -> int:
    """The numbers in all safetensors of a folder; 0 without such a file."""
    tensors: dict[str, Mapping[str, Any]] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= _header(file)
    return sum(math.prod(tensor["shape"]) for tensor in tensors.values())


def _header(file: Path) -> dict[str, Mapping[str, Any]]:
    """Tensor name -> its dtype and shape; empty for a file that is cut off: who loads it will say so."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
        if not 0 < length <= file.stat().st_size:
            return {}
        header: dict[str, Mapping[str, Any]] = json.loads(stream.read(length))
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}
