"""What no reward can be: a run that learns from one, and has none or one that gives no number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config_error import ConfigError

if TYPE_CHECKING:
    from engine.config import Config


def check_reward(config: Config) -> None:
    """That there is a function or a model, and weights only where there is something to weigh."""
    reward = config.reward
    if not reward.function and not reward.model and not reward.functions:
        raise ConfigError(
            f"{type(config.algo).__name__} learns from a reward, and reward.function is empty.",
            keys=("reward.function", "data"),
            advice="Set reward.function=path/to/file.py:name, or choose data that brings a reward.",
        )
    weights = {"reward.function_weight": reward.function_weight, "reward.model_weight": reward.model_weight}
    if not reward.model and not reward.functions and set(weights.values()) != {1.0}:
        raise ConfigError(
            f"{' and '.join(f'{key} is {weight:g}' for key, weight in weights.items())}, and without reward.model "
            "and reward.functions there is nothing to weigh.",
            keys=(*weights, "reward.model"),
            advice="Set reward.model=<a reward model>, or leave the weights out.",
        )
    for name, own in reward.functions.items():
        if not own.function:
            key = f"reward.functions.{name}.function"
            raise ConfigError(f"{key} is empty.", keys=(key,), advice=f"Set {key}=path/to/file.py:name.")
    weights |= {f"reward.functions.{name}.weight": own.weight for name, own in reward.functions.items()}
    counts = [weights[key] for key, given in _judges(config).items() if given]
    if not any(counts):
        raise ConfigError(
            "no judge has a weight, so every reward would be missing.",
            keys=tuple(weights),
            advice="Give at least one a weight other than 0.",
        )
    for key, weight in weights.items():
        if not math.isfinite(weight):
            raise ConfigError(f"{key} is {weight}.", keys=(key,), advice="Set a number.")


def _judges(config: Config) -> dict[str, bool]:
    """The key of each judge's weight, and whether there is that judge."""
    reward = config.reward
    named = {f"reward.functions.{name}.weight": True for name in reward.functions}
    return {"reward.function_weight": bool(reward.function), "reward.model_weight": bool(reward.model)} | named


def check_reward_model(config: Config) -> None:
    """That a folder given as a reward model is one. A hub id is taken at its word."""
    path = Path(config.reward.model)
    if not (config.algo.online and config.reward.model and path.exists()):
        return
    settings: dict[str, Any] = json.loads((path / "config.json").read_text())
    name = (settings.get("architectures") or ["of no architecture"])[0]
    labels = len(settings.get("id2label") or ("0", "1"))
    if not name.endswith("ForSequenceClassification") or labels != 1:
        many = f" with {labels} labels" if name.endswith("ForSequenceClassification") else ""
        raise ConfigError(
            f"reward.model is {path}, which is {name}{many}, and a reward model is a sequence classifier with one "
            "label.",
            keys=("reward.model",),
            advice="Train one (algo=rm) and give that run's export.",
        )
