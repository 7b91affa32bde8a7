"""JSON by a schema: where it is found, what is no JSON, what no schema may do."""

from __future__ import annotations

import time

import pytest

from rewards import schema as rule
from rewards.schema import valid
from rewards.score import CannotJudge, FailureKind

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize(
    "text", ['{"age": 7}', 'So {"age": 7}.', '```json\n{"age": 7}\n```', '{} ```json\n{"age": 7}```']
)
def test_what_the_schema_allows_is_valid(text: str) -> None:
    assert valid(text, "", schema=SCHEMA) == {"parses": 1.0, "valid": 1.0, "total": 1.0}


@pytest.mark.parametrize("text", ["{}", '{"age": "7"}', '{"age": 7.5}', "```json\n[7]\n```", '{"age": null}'])
def test_other_json_parses_and_is_not_valid(text: str) -> None:
    assert valid(text, "", schema=SCHEMA) == {"parses": 1.0, "valid": 0.0, "total": 0.0}


@pytest.mark.parametrize(
    "text",
    ["", "age: 7", '{"age": 7', '{"age": 7,}', '{"age": NaN}', '{"age": 1e999}', '{"age": 1, "age": 7}',
     "{'age': 7}", '{"age": 7} {"age": 7}', '```json\n{"age": 7}', '{"a":' * 100_000 + "}", "{" + "[" * 9_000 + "}",
     '{"age": ' + "9" * 5000 + "}", '{"age": 1' + "0" * 309 + "}",
     '{"age": 7} or {"age": 8}', '"age": 7', "'7'", '{"age": 7}' + " " * 30_000 + "}"],
)  # fmt: skip
def test_what_is_no_json_does_not_parse_and_quickly_so(text: str) -> None:
    start = time.monotonic()
    assert valid(text, "", schema=SCHEMA) == {"parses": 0.0, "valid": 0.0, "total": 0.0}
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("schema", ["no", '{"type": "thing"}', {"$ref": "http://127.0.0.1:9/x"}, {"$ref": "#/none"}])
def test_a_schema_that_is_none_or_lies_elsewhere_cannot_judge(schema: object) -> None:
    with pytest.raises(CannotJudge):
        valid("{}", "", schema=schema)


AGE = '{"age": 7}'
TWO_WAYS = {"anyOf": [{"properties": {"a": {"$ref": "#"}}, "required": [name]} for name in "bc"]}
"""Asks twice as much for each level."""


@pytest.mark.parametrize(
    ("response", "schema", "expected"),
    [
        # Where the JSON is
        (f" {AGE}\n", SCHEMA, True),
        (f"\ufeff{AGE}", SCHEMA, True),
        (f"```\n{AGE}\n```", SCHEMA, True),
        (f"{AGE} // seven", SCHEMA, True),
        (f"[{AGE}]", SCHEMA, False),  # an array, whose object is not what was asked for
        (f"[{AGE}]", {"type": "array", "items": SCHEMA}, True),
        ("[1, 2]", {"type": "array"}, True),
        ("7", {"type": "integer"}, True),
        ('"seven"', {"type": "string"}, True),
        ("null", {"type": "null"}, True),
        ("null", {"type": "boolean"}, False),
        (f'```json\n{AGE}\n```\nor\n```json\n{{"age": "7"}}\n```', SCHEMA, False),
        (f'```json\n{{"age": "7"}}\n```\nor\n```json\n{AGE}\n```', SCHEMA, True),
        ('{"age": 7, "code": "```json\\n{}\\n```"}', SCHEMA, True),
        ('{"age": 7, "text": "}"}', SCHEMA, True),
        # What a number is
        ('{"age": 7.0}', SCHEMA, True),
        ('{"age": 70e-1}', SCHEMA, True),
        ('{"age": true}', SCHEMA, False),
        ("0.07", {"multipleOf": 0.01}, True),
        ("19.99", {"multipleOf": 0.01}, True),
        ("0.075", {"multipleOf": 0.01}, False),
        ("0.3", {"multipleOf": 0.1}, True),
        ("1e2", {"multipleOf": 5}, True),
        ("1" + "0" * 300, {"multipleOf": 0.1}, True),
        ("1" + "0" * 300 + "1", {"multipleOf": 2}, False),
        ("true", {"multipleOf": 2}, True),  # no number, of which the keyword says nothing
        ('"x"', {"multipleOf": 2}, True),
        ("1", {"const": 1.0}, True),
        ("1", {"enum": [True]}, False),
        ("3", {"exclusiveMinimum": 3}, False),
        # Texts
        ('"abc"', {"pattern": "b"}, True),
        ('"abc"', {"pattern": "^b"}, False),
        ('"\\ud83d\\ude00"', {"maxLength": 1}, True),
        ('"ab"', {"minLength": 3}, False),
        # Arrays and objects
        ("[1, 1.0]", {"uniqueItems": True}, False),
        ('[1, true, "1"]', {"uniqueItems": True}, True),
        ('[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', {"uniqueItems": True}, False),
        ("[[1], [true]]", {"uniqueItems": True}, True),
        ("[1, 2, 3]", {"contains": {"const": 2}}, True),
        ('{"a": 1}', {"additionalProperties": False}, False),
        ('{"x-1": 1}', {"patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False}, True),
        ('{"a": {"a": {"b": 1}}}', TWO_WAYS, False),  # the outer ones have neither b nor c
        ('{"b": 1, "a": {"c": 1}}', TWO_WAYS, True),
        ("{}", True, True),
        ("{}", "false", False),
    ],
)
def test_what_a_schema_allows_by_hand(response: str, schema: object, expected: bool) -> None:
    allowed = float(expected)
    assert valid(response, "", schema=schema) == {"parses": 1.0, "valid": allowed, "total": allowed}


@pytest.mark.parametrize(
    ("response", "schema"),
    [
        ('"' + "a" * 50 + '!"', {"pattern": "^(a|a)*$"}),
        ('{"' + "a" * 50 + '!": 1}', {"patternProperties": {"^(a|a)*$": False}}),
        ("[" + ",".join(f'{n},"{n}"' for n in range(1500)) + "]", {"uniqueItems": True}),
        ('{"a":' * 45 + "{}" + "}" * 45, TWO_WAYS),
    ],
    ids=["pattern", "names", "unique", "two ways"],
)
def test_a_response_on_which_a_schema_takes_for_ever_is_a_failure(
    response: str, schema: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "LIMIT_S", 0.1)
    begun = time.process_time()
    with pytest.raises(CannotJudge, match=r"the JSON schema takes more than 0.1 s") as caught:
        valid(response, "", schema=schema)
    assert caught.value.failure.kind is FailureKind.TIMEOUT and time.process_time() - begun < 1.0
    assert valid(AGE, "", schema=SCHEMA)["total"] == 1.0
