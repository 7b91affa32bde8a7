"""Settings typed in place of those that are there already, when no file composes them any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from engine.compose import checked_key, compose, options_in
from engine.config import CONF, OPEN_SECTIONS, Config
from engine.config_error import ConfigError

Raw = Mapping[str, Any]


def keys_of(argv: Sequence[str]) -> dict[str, str]:
    """What each override is about -> the override. Raises ConfigError for what is none."""
    options = options_in(CONF)
    return {checked_key(text, options): text for text in argv}


def changed(raw: Raw, argv: Sequence[str]) -> dict[str, Any]:
    """The sections `raw` with the values in `argv`. Of groups only `algo` can be chosen anew: its file's settings take
    the place of the algorithm's, all of them, and then what is typed does."""
    options, typed = options_in(CONF), keys_of(argv)
    changes: dict[str, Any] = {}
    for key, text in typed.items():
        if key == "algo":
            continue
        if key in options:
            raise ConfigError(
                f"{text} chooses a {key}, and what is there was made by another.",
                keys=(key,),
                places=[f"{text} on the command line"],
                advice="Choose an algorithm (algo=gspo), or set single keys.",
            )
        change: Any = OverridesParser.create().parse_override(text).value()
        for part in reversed(key.split(".")):
            change = {part: change}
        changes = _merged(changes, change)
    if "algo" in typed:
        raw = _merged({**raw, "algo": {}}, _file_of_algorithm(typed["algo"]))
    return _merged(raw, changes)


def _file_of_algorithm(text: str) -> Raw:
    """What the chosen file says, its keys where they land; some set more than the algorithm."""
    files = compose([text], Config, conf=CONF, open_sections=OPEN_SECTIONS).sources.files
    return next(file.content for file in reversed(files) if file.holds("algo._target_"))


def _merged(under: Raw, over: Raw) -> dict[str, Any]:
    return {**under} | {
        name: _merged(under[name], value)
        if isinstance(value, Mapping) and isinstance(under.get(name), Mapping)
        else value
        for name, value in over.items()
    }
