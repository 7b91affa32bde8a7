"""JSON by a schema: where it is found, what is no JSON, what no schema may do."""

from __future__ import annotations

import time

import pytest

from rewards.schema import valid
from rewards.score import CannotJudge

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
     '{"age": ' + "9" * 5000 + "}", '{"age": 7}' + " " * 30_000 + "}"],
)  # fmt: skip
def test_what_is_no_json_does_not_parse_and_quickly_so(text: str) -> None:
    start = time.monotonic()
    assert valid(text, "", schema=SCHEMA) == {"parses": 0.0, "valid": 0.0, "total": 0.0}
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("schema", ["no", '{"type": "thing"}', {"$ref": "http://127.0.0.1:9/x"}, {"$ref": "#/none"}])
def test_a_schema_that_is_none_or_lies_elsewhere_cannot_judge(schema: object) -> None:
    with pytest.raises(CannotJudge):
        valid("{}", "", schema=schema)
