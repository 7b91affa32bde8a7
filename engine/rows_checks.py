"""What no run's data can be: checks of what an algorithm learns from, before a row is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.algorithms.base import LanguageObjective
from engine.config_error import ConfigError
from engine.data.base import GIVES, RowKind
from engine.data.files import FilesData
from workers.config import Overlong

if TYPE_CHECKING:
    from engine.config import Config


def check_rows(config: Config) -> None:
    """Raises a `ConfigError` for the first thing that cannot be."""
    _check_data(config)
    _check_stream(config)
    _check_rendering(config)
    if not config.algo.online:
        _check_lessons(config)


def _check_data(config: Config) -> None:
    kind = RowKind.QUESTIONS if config.algo.online else config.algo.rows
    if not isinstance(config.data, GIVES[kind]):
        algorithm, data = type(config.algo).__name__, type(config.data).__name__
        raise ConfigError(
            f"{algorithm} learns from {kind.value}, and {data} has none.",
            keys=("algo", "data"),
            advice="Choose another algo or data; `python -m engine.main --help` lists them.",
        )


def _check_stream(config: Config) -> None:
    """What has no end cannot be counted, shuffled as a whole, or looked at beforehand."""
    if not (isinstance(config.data, FilesData) and config.data.streaming):
        return
    needs_all = {
        "algo": ("its questions are drawn from all of them", config.algo.online),
        "run.epochs": (f"run.epochs is {config.run.epochs}", config.run.epochs > 0),
    }
    if isinstance(config.algo, LanguageObjective):
        told = "its reference is asked about every row before the run starts"
        needs_all["algo"] = (told, config.algo.needs.reference)
    for key, (reason, holds) in needs_all.items():
        if holds:
            raise ConfigError(
                f"data.streaming is true, and of {type(config.algo).__name__} {reason}.",
                keys=("data.streaming", key),
                advice="Set data.streaming=false (data.max_rows takes the first ones), or run.steps instead of epochs.",
            )


def _check_rendering(config: Config) -> None:
    rendering = config.rendering
    if rendering.chat_template and not Path(rendering.chat_template).is_file():
        raise ConfigError(
            f"rendering.chat_template is {rendering.chat_template}, and there is no such file.",
            keys=("rendering.chat_template",),
            advice=f"Paths are relative to {Path.cwd()}.",
        )
    if config.algo.online and rendering.overlong is Overlong.TRUNCATE:
        raise ConfigError(
            "rendering.overlong is truncate, and a question without its end is another question.",
            keys=("rendering.overlong", "algo"),
            advice="Set rendering.overlong=drop.",
        )


def _check_lessons(config: Config) -> None:
    smallest, rows = config.algo.min_lessons, config.train.examples_per_step
    if rows < smallest:
        raise ConfigError(
            f"{type(config.algo).__name__} compares the rows of a step: it needs {smallest} of them, and "
            f"train.examples_per_step is {rows}.",
            keys=("train.examples_per_step",),
            advice=f"Set train.examples_per_step={max(smallest, 8)}.",
        )
