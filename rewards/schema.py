"""Is what the response gives JSON, and does a JSON Schema allow it?"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from rewards.score import CannotJudge, FailureKind, keeps_nothing
from rewards.time_limit import time_limit

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

MAX_LENGTH = 20_000
"""Characters of JSON; a schema may ask for work that grows with their square (`uniqueItems`)."""
MAX_DEPTH = 50
"""Of objects and arrays in each other."""
LIMIT_S = 1.0
"""For a response to be compared with the schema, which may hold a `pattern` that takes exponential time, or refer to
itself in two ways at each level."""


@keeps_nothing
def valid(response: str, answer: str, *, schema: Mapping[str, object] | str, **row: object) -> dict[str, float]:
    """`valid` is 1 if the response's JSON is what `schema` allows, `parses` if it is JSON at all; `valid` trains.

    The JSON is the whole response where that is JSON, or else what the last ```` ```json ```` block holds, or else
    what stands from the first `{` to the last `}`. `schema` comes from the arguments or from a column of the row, as
    an object or as its text. A text with a key twice, with NaN or a number beyond 1.8e308, or too long or deep is no
    JSON. Raises CannotJudge for a schema that is none, and (TIMEOUT) where comparing takes more than `LIMIT_S`;
    nothing is fetched for a schema that refers to another.

    >>> valid('Here: {"age": 7}', "", schema={"required": ["age"]})
    {'parses': 1.0, 'valid': 1.0, 'total': 1.0}
    >>> valid('{"age": 7}', "", schema={"properties": {"age": {"type": "string"}}})["total"]
    0.0
    """
    validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
    try:
        value = _value_in(response)
    except ValueError:
        return {"parses": 0.0, "valid": 0.0, "total": 0.0}
    try:
        with time_limit(LIMIT_S, "the JSON schema"):
            allowed = float(validator.is_valid(value))
    except CannotJudge:
        raise
    except Exception as error:  # a schema may refer to what is not there, hold a wrong pattern, or overflow
        raise CannotJudge(FailureKind.EXCEPTION, f"the JSON schema cannot be applied: {error}") from error
    return {"parses": 1.0, "valid": allowed, "total": allowed}


def _value_in(response: str) -> object:
    try:
        return parsed(response.strip())
    except ValueError:
        return parsed(extracted(response))


def extracted(text: str) -> str:
    """The part of a response that should be JSON, where the whole is not.

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
    return json.loads(
        text, object_pairs_hook=_without_doubles, parse_constant=_refuse, parse_float=_finite, parse_int=_whole
    )


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


def _whole(text: str) -> int:
    _finite(text)  # or a schema's arithmetic with fractions would overflow
    return int(text)


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Validator:
    # Imported late: it takes a while, and most runs have no schema.
    from jsonschema import SchemaError
    from jsonschema.validators import extend, validator_for
    from referencing import Registry

    try:
        value = json.loads(schema)
        kind = validator_for(value)
        kind.check_schema(value)
    except (ValueError, RecursionError, SchemaError, TypeError) as error:
        raise CannotJudge(FailureKind.EXCEPTION, f"the JSON schema is none: {str(error)[:500]}") from error
    # A registry of our own: without one the library fetches what a schema refers to.
    return extend(kind, {"multipleOf": _multiple_of})(value, registry=Registry())


def _multiple_of(_: Validator, unit: float, value: object, __: object) -> Iterator[ValidationError]:
    """As the numbers are written: in floats 0.07 is no multiple of 0.01."""
    from jsonschema import ValidationError

    if isinstance(value, int | float) and not isinstance(value, bool) and Fraction(str(value)) % Fraction(str(unit)):
        yield ValidationError(f"{value!r} is not a multiple of {unit!r}")
