"""Whether the models of a run are there, and go with its settings and with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config_error import ConfigError
from engine.sizes import ModelSizes
from workers.config import Weights

if TYPE_CHECKING:
    from engine.config import Config

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".gguf"}


def models_of(config: Config) -> dict[str, str]:
    """Which models a run loads: the key and the path of each. A critic without a path of its own is the policy's."""
    own = {"model.path": config.model.path}
    if config.algo.online and config.algo.needs.critic and config.critic.path:
        own["critic.path"] = config.critic.path
    if config.algo.online and config.reward.model:
        own["reward.model"] = config.reward.model
    if config.algo.online and config.reward.judge.model:
        own["reward.judge.model"] = config.reward.judge.model
    return own


def check_model(config: Config, key: str) -> None:
    """That the model at this key could be loaded. A hub id is taken at its word."""
    path = models_of(config)[key]
    folder = Path(path)
    if not folder.exists():
        if HUB_ID.fullmatch(path):
            return
        raise ConfigError(
            f"{key} is {path}: no such folder, and not the form of a hub id (organisation/name).",
            keys=(key,),
            advice=f"Give an existing folder (paths are relative to {Path.cwd()}) or a hub id.",
        )
    files = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if "config.json" not in files:
        raise ConfigError(
            f"{key} is {path}, which holds no config.json.",
            keys=(key,),
            advice="Give the folder of a Hugging Face model.",
        )
    if config.model.weights is Weights.PRETRAINED and not any(Path(name).suffix in WEIGHT_SUFFIXES for name in files):
        from_nothing = ", or set model.weights=random to start from nothing" if key == "model.path" else ""
        raise ConfigError(
            f"model.weights is pretrained, and {path} holds no weights.",
            keys=("model.weights", key),
            advice=f"Give the folder of a trained model{from_nothing}.",
        )


def check_sizes(config: Config, key: str, sizes: ModelSizes) -> None:
    """What the own sizes of the model at this key forbid; nothing where they are not known."""
    if key == "reward.judge.model":  # the only one that reads more than a prompt and its response
        length_key, context = "reward.judge.context_length", config.reward.judge.context_length
    else:
        length_key, context = "model.context_length", config.model.context_length
    path = models_of(config)[key]
    if 0 < sizes.positions < context:
        raise ConfigError(
            f"{length_key} is {context}, and {path} was made for at most {sizes.positions} tokens.",
            keys=(length_key, key),
            advice=f"Set {length_key}={sizes.positions} or less.",
        )
