"""Config dataclasses as a schema: which keys there are, of which types, and whether what was written fits them.

OmegaConf checks the type of each value; this file checks what it words badly or takes for something else: unknown
keys, sections given as values, and enums, which people write by value (`bfloat16`) and OmegaConf reads by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from engine.config_error import ConfigError

HELP_COMMAND = "python -m engine.main --help"
MISSING = "???"
"""What a YAML file writes where a person must."""
ANY_NAME = "<name>"
"""In a key: a name of the person's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One key that takes a value.

    Example:
        Leaf(key="train.ranks", owner=TrainConfig, hint=int, default=1)
    """

    key: str
    owner: type
    """The dataclass whose field it is."""
    hint: Any
    default: object
    """`dataclasses.MISSING` where there is none."""

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    def kind(self) -> str:
        """What it takes, for people."""
        enum = enum_of(self.hint)
        if enum is not None:
            return " or ".join(str(member.value) for member in enum)
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        parts = [words.get(part, str(part)) for part in get_args(self.hint) if part is not Ellipsis]
        if get_origin(self.hint) in (list, tuple):
            return "a text, or a list of texts" if parts[0] == words[str] else f"a list, each {parts[0]}"
        if get_origin(self.hint) is dict:
            return f"a mapping, each value {parts[1]}"
        return " or ".join(parts) or words.get(self.hint, str(self.hint))

    def default_text(self) -> str:
        """The default as it is typed; empty where there is none."""
        return "" if self.default is dataclasses.MISSING else as_typed(self.default)


def as_typed(value: object) -> str:
    """
    >>> as_typed((0.9, 0.999)), as_typed(True), as_typed("")
    ('[0.9,0.999]', 'true', "''")
    """
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(as_typed(part) for part in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{as_typed(part)}" for name, part in value.items()) + "}"
    return "null" if value is None else str(value) or "''"


def enum_of(hint: Any) -> type[Enum] | None:
    """The enum that a field takes, also where it may be None."""
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and issubclass(candidate, Enum):
            return candidate
    return None


def section_of(hint: Any) -> type | None:
    """The dataclass of each section in a mapping from names of the person's own to sections."""
    each = get_args(hint)[1] if get_origin(hint) is dict else None
    return each if dataclasses.is_dataclass(each) else None


def leaves_of(schema: type, opened: Mapping[str, type], prefix: str = "", made: object = None) -> dict[str, Leaf]:
    """Every key below `schema`; `opened` gives the dataclass of each open section.

    `made`: what the section that holds this one makes of it by default, where that is not the class's own default.
    """
    hints = get_type_hints(schema) | opened
    leaves: dict[str, Leaf] = {}
    for field in dataclasses.fields(schema):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        default = _default_of(field) if made is None else getattr(made, field.name)
        if dataclasses.is_dataclass(hint):
            leaves |= leaves_of(hint, {}, prefix=f"{key}.", made=default if isinstance(default, hint) else None)
        elif (each := section_of(hint)) is not None:
            leaves |= leaves_of(each, {}, prefix=f"{key}.{ANY_NAME}.")
        else:
            leaves[key] = Leaf(key=key, owner=schema, hint=hint, default=default)
    return leaves


def leaf_of(key: str, leaves: Mapping[str, Leaf]) -> Leaf | None:
    """The leaf of a key, in which a person may have given a name of their own."""
    parts = key.split(".")
    for leaf in leaves.values():
        of_leaf = leaf.key.split(".")
        if len(of_leaf) == len(parts) and all(a in (b, ANY_NAME) for a, b in zip(of_leaf, parts, strict=True)):
            return leaf
    return None


def _default_of(field: dataclasses.Field[Any]) -> object:
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default


def open_class(section: str, value: object) -> type:
    """The dataclass that an open section names in its `_target_`."""
    target_key = f"{section}._target_"
    target = value.get("_target_") if isinstance(value, Mapping) else None
    if not isinstance(target, str):
        raise ConfigError(
            f"{section} does not say which class it is: it has no _target_.",
            keys=(target_key, section),
            advice=f"Choose an option with {section}=<name>, or write _target_: package.module.Class into its file.",
        )
    module_name, _, class_name = target.rpartition(".")
    try:
        found = vars(importlib.import_module(module_name)) if module_name else {}
    except ImportError as error:
        raise ConfigError(
            f"{target_key}={target} cannot be imported: {error}.",
            keys=(target_key,),
            advice="The path of a class is the path of its file: engine/algorithms/grpo.py -> engine.algorithms.grpo.",
        ) from error
    if not (isinstance(found.get(class_name), type) and dataclasses.is_dataclass(found[class_name])):
        near = difflib.get_close_matches(class_name, [name for name, thing in found.items() if isinstance(thing, type)])
        raise ConfigError(
            f"{target_key}={target} is not a dataclass.",
            keys=(target_key,),
            advice=_did_you_mean([f"{module_name}.{name}" for name in near]) + "Give package.module.Class.",
        )
    if inspect.isabstract(found[class_name]):
        missing = ", ".join(sorted(found[class_name].__abstractmethods__))
        raise ConfigError(
            f"{target_key}={target} is abstract: {missing} are missing.",
            keys=(target_key,),
            advice="Give a class that has them.",
        )
    return found[class_name]


def fit(
    raw: Mapping[str, Any], schema: type, opened: Mapping[str, type], leaves: Mapping[str, Leaf], prefix: str = ""
) -> dict[str, Any]:
    """`raw` with nothing but known keys, sections that are sections, and enum members by name."""
    hints = get_type_hints(schema) | opened
    names = {field.name for field in dataclasses.fields(schema)}
    fitted: dict[str, Any] = {}
    for name, value in raw.items():
        key = f"{prefix}{name}"
        if name not in names:
            raise _unknown_key(key, value, leaves)
        if value == MISSING:
            # OmegaConf would take the dataclass's default, which is not what this file's author meant.
            raise ConfigError(f"{key} has no value.", keys=(key,), advice=f"Type {key}=<{leaves[key].kind()}>.")
        if (each := section_of(hints[name])) is not None:
            named = _section(key, value, leaves)
            fitted[name] = {own: _fit_section(f"{key}.{own}", each, part, leaves) for own, part in named.items()}
        elif dataclasses.is_dataclass(hints[name]):
            fitted[name] = _fit_section(key, hints[name], value, leaves)
        else:
            fitted[name] = _enum_name(key, enum_of(hints[name]), _as_list(hints[name], value))
    return fitted


def _fit_section(key: str, schema: type, value: Any, leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    own = leaves | leaves_of(schema, {}, prefix=f"{key}.")  # of a name of the person's own, which nobody knew before
    return fit(_section(key, value, own), schema, {}, own, prefix=f"{key}.")


def _section(key: str, value: Any, leaves: Mapping[str, Leaf]) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise ConfigError(
        f"{key} is a section, and was given the value {as_typed(value)}.",
        keys=(key,),
        advice=f"Set its keys: {', '.join(leaf for leaf in leaves if leaf.startswith(f'{key}.'))}.",
    )


def _as_list(hint: Any, value: Any) -> Any:
    """One text where a list of texts is taken is a list of one: data.path=rows.jsonl."""
    takes_texts = get_origin(hint) in (list, tuple) and str in get_args(hint)
    return [value] if takes_texts and isinstance(value, str) and not value.startswith("${") else value


def _enum_name(key: str, enum: type[Enum] | None, value: Any) -> Any:
    if enum is None or value is None or (isinstance(value, str) and value.startswith(("${", "???"))):
        return value
    for member in enum:
        if str(value).lower() in (str(member.value).lower(), member.name.lower()):
            return member.name
    values = [str(member.value) for member in enum]
    raise ConfigError(
        f"{key} cannot be {value!r}.",
        keys=(key,),
        advice=_did_you_mean(difflib.get_close_matches(str(value).lower(), values, n=1))
        + f"It is one of: {', '.join(values)}.",
    )


def _unknown_key(key: str, value: object, leaves: Mapping[str, Leaf]) -> ConfigError:
    while isinstance(value, Mapping) and value:  # a misspelt section: name the whole key, as it was typed
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    section, _, name = key.rpartition(".")
    siblings = [leaf.name for leaf in leaves.values() if leaf.key == f"{section}.{leaf.name}"]
    near = [
        *(f"{section}.{sibling}" for sibling in difflib.get_close_matches(name, siblings, n=1)),  # a slip in the name
        *(leaf.key for leaf in leaves.values() if leaf.name == name),  # the section forgotten, or another one
        *difflib.get_close_matches(key, leaves, n=1, cutoff=0.75),  # a slip in the section
    ]
    if not near:
        names = {leaf.name: leaf.key for leaf in leaves.values()}
        near = [names[similar] for similar in difflib.get_close_matches(name, names, n=2)]
    return ConfigError(
        f"{key} is not a key.",
        keys=(key,),
        advice=_did_you_mean(list(dict.fromkeys(near))) + f"`{HELP_COMMAND}` lists all keys.",
    )


def with_whole_keys(refusal: str, prefix: str, names: Iterable[str]) -> str:
    """A dataclass's own words for a value that it refuses, with keys as they are typed: it does not know where in the
    configuration it stands. A name that is also a plain word is a key where the text begins with it, or before a `=`.

    >>> with_whole_keys("cap is 0.5: the cap is at least 1; set max_cap=2", "algo.correction.", ["cap", "max_cap"])
    'algo.correction.cap is 0.5: the cap is at least 1; set algo.correction.max_cap=2'
    """
    for name in names:
        as_key = rf"\b{name}\b" if "_" in name else rf"^{name}\b|\b{name}(?==)"
        refusal = re.sub(rf"(?<![\w.])(?:{as_key})", f"{prefix}{name}", refusal)
    return refusal.rstrip(".")


def _did_you_mean(near: list[str]) -> str:
    return f"Did you mean {' or '.join(near)}? " if near else ""
