"""The border to Hydra and OmegaConf: a command line and YAML files in, one typed object out.

No DictConfig leaves this file, and every mistake in what a person wrote becomes a `ConfigError` made for that person.
An *open* section (an algorithm, a data set) names its own dataclass in `_target_`, and is checked just as the others.
Left out on purpose: sweeps, deletions (`~key`) and Hydra's own settings (`hydra.*`); a run is one set of values.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from engine.config_error import ConfigError
from engine.own_options import check_file, is_path, own_files, shown_to_hydra
from engine.schema import HELP_COMMAND, Leaf, as_typed, fit, leaf_of, leaves_of, open_class, section_of, with_whole_keys

T = TypeVar("T")
KEY = re.compile(r"[A-Za-z_]\w*(\.[\w-]+)*")
Options = Mapping[str, tuple[str, ...]]
HELP_ADVICE = f"See `{HELP_COMMAND}`."


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfFile:
    """One YAML file that took part in a run's configuration.

    Example:
        ConfFile(name="conf/model/nano.yaml", content={"train": {"learning_rate": 2e-4}})
    """

    name: str
    content: Mapping[str, Any]
    """Its keys where they land in the configuration."""

    def holds(self, key: str) -> bool:
        content: Any = self.content
        for part in key.split("."):
            if not isinstance(content, Mapping) or part not in content:
                return False
            content = content[part]
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where each value came from."""

    typed: Mapping[str, str]
    """Key -> the override as typed."""
    files: tuple[ConfFile, ...]
    """In the order they are merged: the last one wins."""

    def is_typed(self, section: str) -> bool:
        """Whether any key of a section was given on the command line."""
        return any(key.startswith(f"{section}.") for key in self.typed)

    def file_of(self, key: str) -> str:
        """The file that set a key; empty when it was typed, or is the default."""
        if key in self.typed:
            return ""
        return next((file.name for file in reversed(self.files) if file.holds(key)), "")

    def where(self, key: str) -> str:
        """For people; empty when the value is the default."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            typed = self.typed.get(".".join(parts[:length]))
            # A group choice (algo=grpo) says where a section came from, not who set a key in it.
            if typed is not None and (length == len(parts) or "{" in typed):
                return f"{typed} on the command line"
        file = self.file_of(key)
        return f"{key} in {file}" if file else ""

    def explain(self, error: ConfigError) -> ConfigError:
        """The same error, saying where the values were set."""
        return error.set_by(list(dict.fromkeys(place for place in map(self.where, error.keys) if place)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed(Generic[T]):
    """A configuration, and how it came about."""

    config: T
    choices: Mapping[str, str]
    """The option chosen in each group, a file of the person's own by its stem; a group without one is left out."""
    sources: Sources


def options_in(conf: Path) -> dict[str, tuple[str, ...]]:
    """Each group (a folder) with its options (its files), numbers in them by size: 3b before 14b."""
    folders = sorted(folder for folder in conf.iterdir() if folder.is_dir())
    return {
        folder.name: tuple(sorted((file.stem for file in folder.glob("*.yaml")), key=_by_number)) for folder in folders
    }


def _by_number(name: str) -> list[str | float]:
    """Text and numbers in turn, so that numbers meet numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def compose(argv: Sequence[str], schema: type[T], *, conf: Path, open_sections: Sequence[str]) -> Composed[T]:
    """The configuration of class `schema` that `argv` asks for."""
    options = options_in(conf)
    keys = [checked_key(text, options) for text in argv]
    own = own_files(argv, options)
    # Values get `++`, because YAML is sparse and Hydra would call most keys unknown; group choices stay as they are.
    texts = [(key, text) for key, text in zip(keys, argv, strict=True) if key not in own]
    overrides = [text if key in options else f"++{text.lstrip('+')}" for key, text in texts]
    with shown_to_hydra(own) as own_overrides:
        raw, choices = _compose_yaml(conf, [*own_overrides, *overrides])
    choices |= {group: path.stem for group, path in own.items()}
    sources = Sources(typed=dict(zip(keys, argv, strict=True)), files=_files(conf, choices, own))
    try:
        config = typed(raw, schema, open_sections)
    except ConfigError as error:
        raise sources.explain(error) from error.__cause__
    return Composed(config=config, choices=choices, sources=sources)


# ----------------------------------------------------------------------------- what was typed


def checked_key(text: str, options: Options) -> str:
    """The key or group that an override is about."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(
            f"`{text}` is not an override: {str(error).splitlines()[0]}.",
            advice="An override is key=value. A value with = , : [ ] { } or quotes needs quotes: 'run.name=\"a=b\"'.",
        ) from error
    key = override.key_or_group
    if override.package is not None or not KEY.fullmatch(key):
        raise ConfigError(
            f"`{text}` is not an override: {key!r} is no key.", advice="An override is section.key=value."
        )
    if override.type is OverrideType.DEL:
        raise ConfigError(f"`{text}` deletes a key, and no key can be missing.", advice="Set it to another value.")
    if override.is_sweep_override():
        raise ConfigError(
            f"`{text}` gives {key} several values, and a run has one.",
            advice=f"For a list type {key}=[...]; quote a text with a comma; for a sweep start several runs.",
        )
    if key.split(".")[0] == "hydra":
        raise ConfigError(
            f"`{text}` is a setting of Hydra's own.", advice="A run's folder and name are run.folder, run.name."
        )
    if key in options:
        _check_choice(override, text, options[key])
    elif "." not in key and (near := difflib.get_close_matches(key, options, n=1)):
        raise ConfigError(
            f"{key} is not a group.",
            places=[f"{text} on the command line"],
            advice=f"Did you mean {near[0]}={override.value()}? The groups are: {', '.join(options)}.",
        )
    return key


def _check_choice(override: Override, text: str, options: tuple[str, ...]) -> None:
    group, choice = override.key_or_group, override.value()
    if choice in options or (choice is None and group == "experiment"):
        return
    if is_path(choice):
        check_file(group, Path(choice), text, options)
        return
    near = difflib.get_close_matches(str(choice), options, n=1)
    raise ConfigError(
        f"{group} has no option {choice!r}.",
        keys=(group,),
        places=[f"{text} on the command line"],
        advice=(f"Did you mean {group}={near[0]}? " if near else "") + f"There are: {', '.join(options)}.",
    )


# ----------------------------------------------------------------------------- what the files say


def _compose_yaml(conf: Path, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with initialize_config_dir(str(conf.resolve()), version_base=None):
            composed = hydra_compose("config", overrides=overrides, return_hydra_config=True)
        choices = OmegaConf.to_container(composed.hydra.runtime.choices)
        names = [str(name) for name in composed if name != "hydra"]
        raw = OmegaConf.to_container(OmegaConf.masked_copy(composed, names))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"The files in {conf} do not compose: {error}", advice="Mend the file it names.") from error
    return raw, {group: choice for group, choice in choices.items() if "/" not in group and choice is not None}


def _files(conf: Path, choices: Mapping[str, str], own: Mapping[str, Path]) -> tuple[ConfFile, ...]:
    main = conf / "config.yaml"
    defaults = [entry for entry in yaml.safe_load(main.read_text())["defaults"] if isinstance(entry, Mapping)]
    groups = [group for entry in defaults for group in entry if group in choices]
    files = []
    shipped = {group: conf / group / f"{choices[group]}.yaml" for group in groups}
    for group, path in {"": main, **shipped, **own}.items():
        text = path.read_text()
        content = yaml.safe_load(text) or {}
        is_global = path == main or "@package _global_" in text
        name = str(path) if group in own else path.relative_to(conf.parent).as_posix()
        files.append(ConfFile(name=name, content=content if is_global else {group: content}))
    return tuple(files)


# ----------------------------------------------------------------------------- into the dataclasses


def typed(raw: dict[str, Any], schema: type[T], open_sections: Sequence[str]) -> T:
    """Plain settings as the records that they are meant to be; raises ConfigError for what does not fit."""
    opened = {section: open_class(section, raw.get(section)) for section in open_sections}
    for section in opened:
        raw[section] = {name: value for name, value in raw[section].items() if name != "_target_"}
    leaves = leaves_of(schema, opened)
    fitted = fit(raw, schema, opened, leaves)
    try:
        node = OmegaConf.structured(schema)
        for section, target in opened.items():
            node[section] = OmegaConf.structured(target)
        _unlock(node)
        return _build(OmegaConf.merge(node, fitted), schema, prefix="")
    except OmegaConfBaseException as error:
        raise _in_our_words(error, fitted, leaves) from error


def _unlock(node: DictConfig) -> None:
    """OmegaConf makes the node of a frozen dataclass read-only, and then merges nothing into it."""
    OmegaConf.set_readonly(node, False)
    for name in node:
        if not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            _unlock(node[name])


def _build(node: DictConfig, schema: type[T], prefix: str) -> T:
    """What `OmegaConf.to_object` does, with tuples where tuples are declared."""
    hints = get_type_hints(schema)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        value, key = node[field.name], f"{prefix}{field.name}"
        if isinstance(value, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(value)):
            values[field.name] = _build(value, OmegaConf.get_type(value), prefix=f"{key}.")
        elif (each := section_of(hints[field.name])) is not None:
            values[field.name] = {name: _build(value[name], each, prefix=f"{key}.{name}.") for name in value}
        elif isinstance(value, ListConfig):
            values[field.name] = _sequence(key, hints[field.name], OmegaConf.to_container(value, resolve=True))
        elif isinstance(value, DictConfig):
            values[field.name] = OmegaConf.to_container(value, resolve=True)
        else:
            values[field.name] = value
    try:
        return schema(**values)
    except ValueError as error:  # a dataclass that refuses its values in __post_init__
        keys = [f"{prefix}{name}" for name in values if re.search(rf"\b{name}\b", str(error))]
        raise ConfigError(f"{with_whole_keys(str(error), prefix, values)}.", keys=keys, advice=HELP_ADVICE) from error


def _sequence(key: str, hint: Any, values: list[Any]) -> list[Any] | tuple[Any, ...]:
    if get_origin(hint) is not tuple:
        return values
    parts = get_args(hint)
    if parts[-1] is not Ellipsis and len(values) != len(parts):
        raise ConfigError(
            f"{key} takes {len(parts)} values, and was given {len(values)}: {as_typed(values)}.",
            keys=(key,),
            advice=f"Type {key}=[{','.join(['<value>'] * len(parts))}].",
        )
    return tuple(values)


def _in_our_words(error: OmegaConfBaseException, fitted: Mapping[str, Any], leaves: Mapping[str, Leaf]) -> ConfigError:
    key = re.sub(r"\[.*", "", str(error.full_key))
    # What lies below a leaf is within a mapping: reward.arguments.tolerance.
    while (leaf := leaf_of(key, leaves)) is None and key:
        key = key.rpartition(".")[0]
    if leaf is None:
        return ConfigError(str(error.msg).splitlines()[0], advice=HELP_ADVICE)
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{key} has no value.", keys=(key,), advice=f"Type {key}=<{leaf.kind()}>.")
    if not isinstance(error, ValidationError):
        return ConfigError(f"{key}: {str(error.msg).splitlines()[0]}.", keys=(key,), advice="Give the value itself.")
    value: Any = fitted
    for part in key.split("."):
        value = value[part]
    default = leaf.default_text()
    return ConfigError(
        f"{key} takes {leaf.kind()}, and was given {value!r}.",
        keys=(key, str(error.full_key)),
        advice=f"Its default is {default}." if default else f"Type {key}=<{leaf.kind()}>.",
    )
