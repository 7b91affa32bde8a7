"""What a person is shown of a step: its best and its worst response, whatever characters a model wrote."""

from __future__ import annotations

import io
import unicodedata

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from engine.shown_responses import MARK, MOST_CHARACTERS, MOST_LINES, Place, clipped, extremes, told, visible
from rewards.score import Judgement, Score, judgement_of
from workers.records import Group, GroupSummary, Message, Prompt, Rollout, ScoredRollout, Span, Stop

NAN = float("nan")


def scored(text: str, judgement: Judgement, *, asked: str = "1+1=") -> ScoredRollout:
    prompt = Prompt(
        id="p1", messages=(Message(role="user", content=asked),), token_ids=(1,), answer="2", row={}, from_text=True
    )
    rollout = Rollout(
        prompt=prompt, draw=7, sample=0, text=text, token_ids=np.array([1, 2]), logprobs=np.zeros(2), stop=Stop.LENGTH,
        spans=(Span(start=0, end=2, sampled=True, version=3),),
    )  # fmt: skip
    return ScoredRollout(rollout=rollout, judgement=judgement)


def group(*scores: float) -> GroupSummary:
    judged = [scored("x", judgement_of(score, name="a")) for score in scores]
    own = Group(rollouts=tuple(one.rollout for one in judged), greedy=None, prompt_text="")
    return own.summary([one.judgement for one in judged], judging_s=0.0)


def test_the_best_and_the_worst_are_of_the_judged_ones() -> None:
    summaries = [group(0.5, NAN), group(-1.0, 0.75), group(NAN, NAN)]
    assert extremes(summaries) == (Place(group=1, sample=1), Place(group=1, sample=0))
    assert extremes([group(NAN)]) is None


def test_of_equals_two_are_shown() -> None:
    assert extremes([group(1.0, 1.0), group(1.0, 1.0)]) == (Place(group=0, sample=0), Place(group=1, sample=1))


def test_a_block_says_what_was_asked_answered_expected_and_given() -> None:
    best = scored("it is\n2", Score(total=1.25, parts={"correct": 1.0, "format": 0.25}))
    worst = scored("", Score(total=0.0, parts={"correct": 0.0}))
    assert told(best, worst, step=30) == (
        "step 30, best response: score 1.25 = correct 1, format 0.25 (p1, 2 tokens, cut off)",
        f"  user      {MARK}1+1=",
        f"  response  {MARK}it is",
        f"            {MARK}2",
        f"  answer    {MARK}2",
        "step 30, worst response: score 0 (p1, 2 tokens, cut off)",
        f"  user      {MARK}1+1=",
        f"  response  {MARK}",
        f"  answer    {MARK}2",
    )


HOSTILE = [
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\r\x08\x00\x7f",
    "\u202eevil\u2066\u200b\ufeff",
    "\ud800",
    "\u2028\x85\x0b\x0c",
    "[red]markup[/red] :smile: [link=http://x]y[/link]",
    "\nstep 30, best response: score 9",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_writes_moves_no_cursor_and_forges_no_line(text: str) -> None:
    lines = told(scored(text, Score(total=1.0, parts={text: 1.0, "b": 0.0})), scored(text, Score(total=0, parts={})),
                 step=30)  # fmt: skip
    assert all(unicodedata.category(one)[0] != "C" for line in lines for one in line)
    assert sum(line.startswith("step") for line in lines) == 2
    console = Console(file=io.StringIO(), width=200, force_terminal=True, highlight=False)
    console.print(Text("\n".join(lines)), soft_wrap=True)
    assert console.file.getvalue() == "\n".join(lines) + "\n"  # nothing was taken for markup


def test_every_character_that_is_not_one_to_see_is_an_escape() -> None:
    shown = visible("".join(map(chr, range(0x11000))))
    assert shown.isprintable() and visible("größer 日本") == "größer 日本"


def test_a_long_text_is_clipped_in_the_middle_and_says_so() -> None:
    text = clipped("a" * 5000 + "b" * 5000)
    assert len(text) < MOST_CHARACTERS + 60 and text.startswith("aaa") and text.endswith("bbb")
    assert f"[... {10000 - MOST_CHARACTERS} characters left out ...]" in text
    lines = clipped("\n" * 100).split("\n")
    assert len(lines) == MOST_LINES + 1 and lines[MOST_LINES // 2] == f"[... {101 - MOST_LINES} lines left out ...]"
