"""Form: tags in order and once, a whole match of a pattern, thinking before answering."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

import pytest

from engine.judging import reward_specs
from rewards import format as form
from rewards.format import matches, tags
from rewards.item import Item
from rewards.score import CannotJudge, Failure, FailureKind, Score
from rewards.thinking import thinks
from workers.config import RewardConfig
from workers.reward_pool import RewardPool
from workers.reward_worker import limits_of

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


@pytest.mark.parametrize(
    ("response", "names", "expected"),
    [
        ("<a>1</a>", ["a"], 1.0),
        ("<a>1</a>\t<b>2</b>\r\n<c>3</c>", ["a", "b", "c"], 1.0),
        ("<a>1</a><b>2</b>", ["a"], 0.0),
        ("<a>1</a>", ["a", "b"], 0.0),
        ("<b>2</b><a>1</a>", ["a", "b"], 0.0),
        ("<a>1</a><a>1</a>", ["a", "a"], 0.0),  # each exactly once, which two of them are not
        ("<a>1</b><b>2</a>", ["a", "b"], 0.0),
        ("<a>1<b>2</b></a>", ["a", "b"], 0.0),
        ("<a>1<c>2</c></a>", ["a"], 1.0),  # another tag is text
        ("<a>1 < 2 > 0</a>", ["a"], 1.0),
        ("<a>\u200b</a>", ["a"], 0.0),
        ("<a>\u00a0\u2003</a>", ["a"], 0.0),
        ("<a>.</a>", ["a"], 1.0),
        ("<a>1</a>.", ["a"], 0.0),
        ("<a>1</a>\u200b", ["a"], 0.0),
        ("<a>1</a", ["a"], 0.0),
        ("<a >1</a>", ["a"], 0.0),
        ("<A>1</A>", ["a"], 0.0),
        ("</a>1<a>", ["a"], 0.0),
        ("<aa>1</aa>", ["a"], 0.0),
        ("<a>say <a> once</a>", ["a"], 0.0),
        ("<a>1</a>", [], 0.0),
        ("", [], 0.0),
        ("<SQL query>x</SQL query>", ["SQL query"], 1.0),
    ],
)
def test_tags_by_hand(response: str, names: Sequence[str], expected: float) -> None:
    assert tags(response, "", tags=names) == {"format": expected}


@pytest.mark.parametrize(
    ("response", "pattern", "expected"),
    [
        ("a\nb", "a.b", 1.0),
        ("a-b ", "a.b", 0.0),
        ("xa-b", "a.b", 0.0),
        ("", "", 1.0),
        ("x", "", 0.0),
        ("x\n", "x", 0.0),
        ("x\n", "x$", 0.0),  # the line end is left over
        ("x\n", r"x\s*", 1.0),
        ("X", "x", 0.0),
        ("X", "(?i)x", 1.0),
        ("ab", "a|ab", 1.0),  # whichever alternative makes the whole fit
        ("1.5", r"\d+(\.\d+)?", 1.0),
        ("1.", r"\d+(\.\d+)?", 0.0),
        ("٣", r"\d", 1.0),
        ("x" * 100_000, "x*", 1.0),
        ("x" * 100_001, "x*", 0.0),
        (r"\boxed{7}", r"\\boxed\{7\}", 1.0),
        ("<think>\n2\n</think>4", "<think>.+</think>.+", 1.0),
        ("aa", r"(.)\1", 1.0),
        ("ab", r"(.)\1", 0.0),
    ],
)
def test_a_pattern_must_match_the_whole_response(response: str, pattern: str, expected: float) -> None:
    assert matches(response, "", pattern=pattern) == {"format": expected}


def test_a_response_on_which_the_pattern_takes_for_ever_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "PATTERN_LIMIT_S", 0.05)
    with pytest.raises(CannotJudge, match=r"the pattern '\(a\|a\)\*b' takes more than 0.05 s") as caught:
        matches("a" * 50, "", pattern="(a|a)*b")
    assert caught.value.failure.kind is FailureKind.TIMEOUT
    assert matches("aab", "", pattern="(a|a)*b") == {"format": 1.0}


def test_in_the_pool_such_a_response_costs_its_own_score_and_no_process() -> None:
    config = RewardConfig(function="rewards.format:matches", arguments={"pattern": "(a|a)*b"}, timeout_s=60.0)
    texts = ["aab", "a" * 50, "aab"]
    items = [
        Item(id=f"0/{n}", response=text, answer="", prompt="", messages=(), from_text=True, token_ids=(), row={})
        for n, text in enumerate(texts)
    ]
    with closing(RewardPool(reward_specs(config), limits_of(config), processes=1)) as pool:
        before = list(pool._living[0]._children.values())
        first, late, last = pool.judge(0, items).result()
        assert list(pool._living[0]._children.values()) == before
    assert isinstance(late, Failure) and late.kind is FailureKind.TIMEOUT and "takes more than 1 s" in late.reason
    assert first == last == Score(total=1.0, parts={"format": 1.0})
