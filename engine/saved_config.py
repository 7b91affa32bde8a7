"""The settings of an earlier run, as its folder keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.changed_settings import changed, keys_of
from engine.compose import typed
from engine.config import OPEN_SECTIONS, Config
from engine.config_checks import check
from engine.config_error import ConfigError

FILE_NAME = "config.yaml"


def saved_config(folder: Path, argv: Sequence[str] = ()) -> Config:
    """`argv`: settings in place of the run's own, as they are typed for a run.

    Raises ConfigError where there is no run, one of settings that are not known any more, or for what was typed.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise ConfigError(
            f"{folder} holds no {FILE_NAME}, so it is no run's folder.",
            keys=(),
            advice="Give the folder of a run, such as runs/grpo-nano-arithmetic.",
        )
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    sections = {name: _plain(value, is_open=name in OPEN_SECTIONS) for name, value in raw.items() if name != "_target_"}
    if not argv:
        return typed(sections, Config, OPEN_SECTIONS)
    try:
        config = typed(changed(sections, argv), Config, OPEN_SECTIONS)
        check(config)
    except ConfigError as error:
        own = keys_of(argv)
        raise error.set_by([f"{own[key]} on the command line" for key in error.keys if key in own]) from None
    return config


def _plain(value: Any, *, is_open: bool = False) -> Any:
    """Without the classes that settings are of, but for the one that decides an open section."""
    if not isinstance(value, dict):
        return value
    return {name: _plain(item) for name, item in value.items() if is_open or name != "_target_"}
