"""Form: tags in order and once, a whole match of a pattern, thinking before answering."""

from __future__ import annotations

import time

import pytest

from rewards.format import matches, tags
from rewards.thinking import thinks

GOOD = "<think>a</think><answer>b</answer>"
BAD = [
    "",
    "b",
    "<answer>b</answer><think>a</think>",
    "<think></think><answer>b</answer>",
    "<think>a</think><answer> </answer>",
    "<think>a</think>",
    GOOD + GOOD,
    GOOD + "c",
    "c" + GOOD,
    "<think>a</think>c<answer>b</answer>",
    "<think>a<answer>b</answer></think>",
    "<think>a</think><answer>b",
    "<think>a<think></think><answer>b</answer>",
    "<THINK>a</THINK><answer>b</answer>",
    "<think>" * 200_000,
]


@pytest.mark.parametrize("response", [GOOD, f" {GOOD}\n", "<think>\na\n</think>\n\n<answer>\nb\n</answer>"])
def test_tags_in_order_are_the_form(response: str) -> None:
    assert tags(response, "") == thinks(response, "") == {"format": 1.0}


@pytest.mark.parametrize("response", BAD)
def test_anything_else_is_not(response: str) -> None:
    start = time.monotonic()
    assert tags(response, "") == thinks(response, "") == {"format": 0.0}
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("response", ["<think></think>a", "<think>a</think>", "a", "<think>a</think>b</think>c"])
def test_an_empty_thought_or_answer_does_not_count(response: str) -> None:
    assert thinks(response, "", answer_tag="") == {"format": 0.0}
    assert thinks("<think>a</think>b", "", answer_tag="") == {"format": 1.0}


def test_a_pattern_must_match_the_whole_response() -> None:
    assert [matches(text, "", pattern="a.b")["format"] for text in ("a\nb", "a-b ", "xa-b")] == [1.0, 0.0, 0.0]
