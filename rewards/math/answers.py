"""Where a text says what its answer is: boxes, `####`, and where one asks for it, a phrase or the last number.

Every scan is one pass: its time is linear in the length of the text, whatever the text holds.
"""

from __future__ import annotations

import re

MAX_LENGTH = 300
"""Characters of an answer; a longer one is none."""

BRACES = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|([{}])", re.DOTALL)
PHRASE = re.compile(r"\b(?:answer|ans)\b(?:\s{1,3}is\b)?\s{0,3}[:=]?\s{0,3}", re.IGNORECASE)
END_OF_SENTENCE = re.compile(r"\n|[.;](?=\s|$)")
LAST_NUMBER = re.compile(r"(?<![0-9A-Za-z.,])[+-]?(?:[0-9]{1,40}(?:,[0-9]{3})*(?:\.[0-9]{1,40})?)(?![0-9A-Za-z])")
LAST_WORDS = 2000
"""Characters at the end of a text in which the last number is looked for."""


def final_answers(text: str, *, anywhere: bool = False) -> list[str]:
    """Everything boxed, or else the line after the last `####`; a text without either has no answer.

    A finished thought (`...</think>`) is left out, an unfinished one holds no answer. With `anywhere`, what follows
    the last "answer is" or "answer:" counts too, and at last the last number.

    >>> final_answers(r"\\boxed{\\frac{1}{2}}"), final_answers("#### 3\\n#### 4"), final_answers("5")
    (['\\\\frac{1}{2}'], ['4'], [])
    >>> final_answers("The answer is 5.", anywhere=True), final_answers("So 4 + 1 = 5 apples.", anywhere=True)
    (['5'], ['5'])
    """
    text = after_thought(text)
    boxes = boxed(text)
    if boxes:
        return boxes
    _, mark, rest = text.rpartition("####")
    if mark:
        return [rest[: 4 * MAX_LENGTH].strip().partition("\n")[0]]
    return said(text) if anywhere else []


def after_thought(text: str) -> str:
    """What comes after the thinking; nothing where the thinking never ends."""
    _, ended, rest = text.rpartition("</think>")
    if ended:
        return rest
    return "" if "<think>" in text else text


def boxed(text: str) -> list[str]:
    """The content of every `\\boxed{...}` whose braces balance, in one pass over the text."""
    boxes, opened = [], []
    for match in BRACES.finditer(text):
        box, brace = match.groups()
        if box:
            opened.append(match.end())
        elif brace == "{":
            opened.append(None)
        elif brace == "}" and opened:
            start = opened.pop()
            if start is not None:
                # Cut here, or thousands of nested boxes would be copied thousands of times.
                boxes.append(text[start : min(match.start(), start + MAX_LENGTH + 1)])
    return boxes


def said(text: str) -> list[str]:
    """The end of the sentence that names an answer, or else the last number near the end."""
    tail = text[-LAST_WORDS:]
    phrases = list(PHRASE.finditer(tail))
    if phrases:
        rest = tail[phrases[-1].end() :].strip()
        return [END_OF_SENTENCE.split(rest, maxsplit=1)[0].strip(" *")]
    numbers = LAST_NUMBER.findall(tail)
    return numbers[-1:]
