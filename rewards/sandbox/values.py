"""Plain values as JSON and back. What comes out of `read` is of exactly Python's own types, whatever was sent.

bool, None, int, float, str       as in JSON (an int beyond 64 bits: {"int": hexadecimal})
list                              as in JSON
tuple, set, frozenset             {"tuple": [...]}
dict                              {"dict": [[key, value], ...]}
bytes, complex                    {"bytes": hexadecimal}, {"complex": [real, imaginary]}
"""

from __future__ import annotations

import json

MAX_DEPTH = 50
SEQUENCES = {"tuple": tuple, "set": set, "frozenset": frozenset}


def write(value: object) -> str:
    return json.dumps(plain(value))


def plain(value: object, depth: int = 0) -> object:
    """A subclass's value is what its base holds. Raises TypeError for anything that is not plain."""
    if depth > MAX_DEPTH:
        raise TypeError(f"nested deeper than {MAX_DEPTH}")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        number = int.__add__(value, 0)
        return number if -(2**63) <= number < 2**63 else {"int": hex(number)}
    if isinstance(value, float):
        return float.__add__(value, 0.0) if value else 0.0
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [plain(one, depth + 1) for one in list.__iter__(value)]
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [plain(one, depth + 1) for one in kind.__iter__(value)]}
    if isinstance(value, dict):
        return {"dict": [[plain(key, depth + 1), plain(one, depth + 1)] for key, one in dict.items(value)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"a {type(value).__name__} is no plain value")


def read(text: str) -> object:
    """Raises ValueError for anything that `write` does not write; a hostile writer gets no further than that."""
    try:
        return _built(json.loads(text), 0)
    except (TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a plain value: {error}") from error


def _built(value: object, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return [_built(one, depth + 1) for one in value]
    if not isinstance(value, dict):
        return value
    [(name, held)] = value.items()
    if name in SEQUENCES:
        return SEQUENCES[name](_built(one, depth + 1) for one in held)
    if name == "dict":
        return {_built(key, depth + 1): _built(one, depth + 1) for key, one in held}
    if name == "int":
        return int(held, 16)
    if name == "bytes":
        return bytes.fromhex(held)
    if name == "complex":
        real, imaginary = held
        return complex(real, imaginary)
    raise ValueError(f"there is no {name}")
