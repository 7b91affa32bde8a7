"""Is what the response gives JSON, and does a JSON Schema allow it?"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rewards.score import CannotJudge, FailureKind, keeps_nothing

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MAX_LENGTH = 20_000
"""Characters of JSON; a schema may ask for work that grows with their square (`uniqueItems`)."""
MAX_DEPTH = 50
"""Of objects and arrays in each other."""


@keeps_nothing
def valid(response: str, answer: str, *, schema: Mapping[str, object] | str, **row: object) -> dict[str, float]:
    """`valid` is 1 if the response's JSON is what `schema` allows, `parses` if it is JSON at all; `valid` trains.

    The JSON is what the last ```` ```json ```` block holds, or else what stands from the first `{` to the last `}`.
    `schema` comes from the arguments or from a column of the row, as an object or as its text. A text with a key
    twice, with NaN, or too long or deep is no JSON. Raises CannotJudge for a schema that is none; nothing is fetched
    for one that refers to another.

    >>> valid('Here: {"age": 7}', "", schema={"required": ["age"]})
    {'parses': 1.0, 'valid': 1.0, 'total': 1.0}
    >>> valid('{"age": 7}', "", schema={"properties": {"age": {"type": "string"}}})["total"]
    0.0
    """
    validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
    try:
        value = parsed(extracted(response))
    except (ValueError, RecursionError):
        return {"parses": 0.0, "valid": 0.0, "total": 0.0}
    try:
        allowed = float(validator.is_valid(value))
    except Exception as error:  # a schema may refer to what is not there, hold a wrong pattern, or overflow
        raise CannotJudge(FailureKind.EXCEPTION, f"the JSON schema cannot be applied: {error}") from error
    return {"parses": 1.0, "valid": allowed, "total": allowed}


def extracted(text: str) -> str:
    """The part of a response that should be JSON.

    >>> extracted('So:\\n```json\\n[1]\\n```\\nDone.'), extracted('So {"a": {}}.'), extracted("none")
    ('[1]', '{"a": {}}', '')
    """
    _, mark, rest = text.rpartition("```json")
    if mark:
        inside, end, _ = rest.partition("```")
        return inside.strip() if end else ""
    first, last = text.find("{"), text.rfind("}")
    return text[first : last + 1] if first >= 0 else ""


def parsed(text: str) -> object:
    """The value of a strict JSON text. Raises ValueError.

    >>> parsed('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"{len(text)} characters; at most {MAX_LENGTH} are read")
    depth = deepest = 0
    # Brackets inside strings count too: a limit may be strict, and the parser must not be asked first.
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ValueError(f"{deepest} levels; at most {MAX_DEPTH} are read")
    return json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse, parse_float=_finite)


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Validator:
    # Imported late: it takes a while, and most runs have no schema.
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        value = json.loads(schema)
        kind = validator_for(value)
        kind.check_schema(value)
    except (ValueError, RecursionError, SchemaError, TypeError) as error:
        raise CannotJudge(FailureKind.EXCEPTION, f"the JSON schema is none: {str(error)[:500]}") from error
    # A registry of our own: without one the library fetches what a schema refers to.
    return kind(value, registry=Registry())
