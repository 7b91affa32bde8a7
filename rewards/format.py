"""Does the response have the form that was asked for? What it says is not judged."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from rewards.score import keeps_nothing
from rewards.time_limit import time_limit

MAX_LENGTH = 100_000
"""Characters of a response that a pattern is tried on; a longer one does not match."""
PATTERN_LIMIT_S = 1.0


@keeps_nothing
def tags(response: str, answer: str, *, tags: Sequence[str] = ("think", "answer"), **row: object) -> dict[str, float]:
    """`{"format": 1.0}` if the response is these tags, in this order, each exactly once, and none is empty.

    Nothing but white space may stand outside of them.

    >>> tags("<think>2 + 2</think> <answer>4</answer>", "4"), tags("<answer>4</answer>", "4")
    ({'format': 1.0}, {'format': 0.0})
    """
    return {"format": float(bool(tags) and enclosed(response, tags) is not None)}


@keeps_nothing
def matches(response: str, answer: str, *, pattern: str, **row: object) -> dict[str, float]:
    """`{"format": 1.0}` if the whole response matches the regular expression; `.` matches line ends too.

    The pattern is yours: one with nested repetition, like `(a+)+b`, takes exponential time on some responses. After
    `PATTERN_LIMIT_S` such a response is a failure (TIMEOUT), and the next one is judged.

    >>> matches("x = 4", "4", pattern=r"x = [0-9]+"), matches("so x = 4", "4", pattern=r"x = [0-9]+")
    ({'format': 1.0}, {'format': 0.0})
    """
    if len(response) > MAX_LENGTH:
        return {"format": 0.0}
    with time_limit(PATTERN_LIMIT_S, f"the pattern {pattern!r:.200}"):
        return {"format": float(bool(re.fullmatch(pattern, response, re.DOTALL)))}


def has_text(text: str) -> bool:
    """Whether anything of it can be seen.

    >>> has_text("4"), has_text(" \\n\u200b")
    (True, False)
    """
    return any(unicodedata.category(letter)[0] not in "CZ" for letter in text)


def enclosed(text: str, names: Sequence[str]) -> list[str] | None:
    """What each tag encloses, stripped; None if the text is not exactly these tags in order, or one is empty.

    >>> enclosed(" <a>1</a> <b> 2 </b>", ["a", "b"]), enclosed("<a>1</a><b></b>", ["a", "b"])
    (['1', '2'], None)
    """
    marks = [mark for name in names for mark in (f"<{name}>", f"</{name}>")]
    if any(text.count(mark) != 1 for mark in marks):
        return None
    contents, rest = [], text
    for index, mark in enumerate(marks):
        before, found, rest = rest.partition(mark)
        inside = index % 2 == 1
        if not found or not (has_text(before) if inside else not before.strip()):
            return None
        if inside:
            contents.append(before.strip())
    return None if rest.strip() else contents
