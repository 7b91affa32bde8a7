"""What no reward can be: a run that learns from one, and has none or one that gives no number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config_error import ConfigError
from workers.judge_endpoint import SAID_BY_JUDGE, asks_own_judge

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


def check_judge(config: Config) -> None:
    """That functions which ask a judge have one, and that a judge of the run's own is asked, and can be."""
    reward, judge = config.reward, config.reward.judge
    configured = {"reward": (reward.function, reward.arguments)}
    configured |= {f"reward.functions.{name}": (own.function, own.arguments) for name, own in reward.functions.items()}
    asking = {key: own for key, own in configured.items() if asks_own_judge(*own)}
    for key, (function, arguments) in asking.items():
        if not judge.model:
            raise ConfigError(
                f"{key}.function is {function}, and nothing says which model judges.",
                keys=(f"{key}.function", "reward.judge.model"),
                advice="Set reward.judge.model=<folder or hub id>, which the run then serves itself, or "
                f"{key}.arguments.url=http://<host>:8000/v1 and {key}.arguments.model=<its name there>.",
            )
        if said := [f"{key}.arguments.{name}" for name in SAID_BY_JUDGE if name in arguments]:
            raise ConfigError(
                f"{said[0]} is set, and {key}.function asks reward.judge.model, which says that itself.",
                keys=(said[0], "reward.judge.model"),
                advice=f"Leave it out, or set {key}.arguments.url to ask another endpoint.",
            )
    if judge.model and not asking:
        raise ConfigError(
            f"reward.judge.model is {judge.model}, and no function asks it.",
            keys=("reward.judge.model",),
            advice="Set reward.functions.<name>.function=rewards.judge:rubric without a url, or leave "
            "reward.judge.model out.",
        )
    if judge.model:
        _check_judge_numbers(config)


def _check_judge_numbers(config: Config) -> None:
    judge = config.reward.judge
    if judge.max_reply_tokens >= judge.context_length:
        raise ConfigError(
            f"reward.judge.max_reply_tokens ({judge.max_reply_tokens}) leaves no room for a question in "
            f"reward.judge.context_length ({judge.context_length}).",
            keys=("reward.judge.max_reply_tokens", "reward.judge.context_length"),
            advice="A question quotes the conversation, the reference answer and the response: leave room for them.",
        )
    if judge.gpus > 1 and not float(judge.gpus).is_integer():
        raise ConfigError(
            f"reward.judge.gpus is {judge.gpus:g}, and a model on several GPUs takes whole ones.",
            keys=("reward.judge.gpus",),
            advice="Set a whole number, or a share of one GPU.",
        )


def check_judge_model(config: Config) -> None:
    """That a folder given as the judge holds a model that can be asked in turns. A hub id is taken at its word."""
    path = Path(config.reward.judge.model)
    if not (config.algo.online and config.reward.judge.model and path.exists()):
        return
    [name] = (json.loads((path / "config.json").read_text()).get("architectures") or ["of no architecture"])[:1]
    if "Classification" in name:
        raise ConfigError(
            f"reward.judge.model is {path}, which is {name}: it gives numbers, and a judge writes what it thinks.",
            keys=("reward.judge.model",),
            advice="Give it as reward.model, or give a language model.",
        )
    if not _has_chat_template(path):
        raise ConfigError(
            f"reward.judge.model is {path}, which has no chat template, so it cannot be asked.",
            keys=("reward.judge.model",),
            advice="Give an instruction-tuned model, or put its chat_template.jinja into the folder.",
        )


def _has_chat_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    named = settings.exists() and json.loads(settings.read_text()).get("chat_template")
    # Mistral's own tokenizers know their turns themselves.
    return bool(named or [*folder.glob("chat_template*"), *folder.glob("tekken.json"), *folder.glob("*.model.v*")])
