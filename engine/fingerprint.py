"""Whether settings or data are the same as before, and if not, where they differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path


def fingerprint(value: object) -> str:
    """A hash of settings or data: equal exactly when dataclasses, enums and plain values are.

    >>> fingerprint({"a": 1, "b": (2.0,)}) == fingerprint({"b": [2.0], "a": 1}) != fingerprint({"a": 1, "b": [2]})
    True
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def flattened(settings: object, prefix: str = "") -> dict[str, str]:
    """Dotted keys and the repr of their values; a dataclass also names its class, which is a choice too.

    >>> flattened({"train": {"ranks": 2, "betas": (0.9, 0.999)}})
    {'train.ranks': '2', 'train.betas': '[0.9, 0.999]'}
    """
    plain = _plain(settings)
    if not isinstance(plain, dict) or not plain:
        return {prefix: repr(plain)}
    flat: dict[str, str] = {}
    for name, value in plain.items():
        flat |= flattened(value, ".".join(part for part in (prefix, name) if part))
    return flat


def _plain(value: object) -> object:
    match value:
        case Enum():
            return value.name
        case None | bool() | int() | float() | str():
            return value
        case Path():
            return str(value)
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__} | {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(
        f"a {type(value).__name__} has no fingerprint: use dataclasses, enums, mappings, lists, text, numbers"
    )
