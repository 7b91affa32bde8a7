"""Countdown: do these numbers make the target? The expression is read by a parser of its own; nothing is evaluated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from rewards.math.answers import boxed
from rewards.score import keeps_nothing

MAX_LENGTH = 300
"""Characters of an expression; a longer one is none."""
MAX_DEPTH = 30
"""Of parentheses in each other."""

TOKEN = re.compile(r"\s*([0-9]{1,12}(?![0-9.])|[-+*/()])")
OTHER_SIGNS = {
    "×": "*",
    "·": "*",
    "÷": "/",
    "−": "-",
    r"\times": "*",
    r"\cdot": "*",
    r"\div": "/",
    r"\left(": "(",
    r"\right)": ")",
}
SIGNS = re.compile("|".join(map(re.escape, OTHER_SIGNS)))


@keeps_nothing
def correct(
    response: str,
    answer: str,
    *,
    numbers: Sequence[int] = (),
    nums: Sequence[int] = (),
    use_all: bool = True,
    **row: object,
) -> dict[str, float] | None:
    """`{"correct": 1.0}` if the response's expression makes `answer`, the target, from the row's numbers.

    The numbers are the row's column `numbers` or `nums`; each may be used once, and with `use_all` must be. The
    expression is what the last `<answer>...</answer>` or `\\boxed{...}` holds; `= target` may follow it. None if
    the row has no target, or no numbers that can be written: whole and not negative.

    >>> correct("<answer>(25 - 5) * 4</answer>", "80", numbers=[4, 5, 25])
    {'correct': 1.0}
    >>> correct("<answer>80</answer>", "80", numbers=[4, 5, 25]), correct("(25 - 5) * 4", "80", numbers=[4, 5, 25])
    ({'correct': 0.0}, {'correct': 0.0})
    """
    row_numbers = list(numbers or nums)
    if not all(type(number) is int and number >= 0 for number in row_numbers):
        return None
    given = Counter(str(number) for number in row_numbers)
    target = answer.strip()
    if not given or re.fullmatch(r"-?[0-9]{1,12}", target) is None:
        return None
    text, equals, right = final(response).partition("=")
    if equals and right.strip() != target:
        return {"correct": 0.0}
    tokens = tokens_of(text)
    used = Counter(str(int(token)) for token in tokens if token.isdigit())
    if not (used == given if use_all else used <= given):
        return {"correct": 0.0}
    return {"correct": float(value_of(tokens) == int(target))}


def final(response: str) -> str:
    """What the response marks as its answer: empty, if nothing is marked."""
    before, end, _ = response.rpartition("</answer>")
    _, start, inside = before.rpartition("<answer>")
    if end and start:
        return inside
    boxes = boxed(response)
    return boxes[-1] if boxes else ""


def tokens_of(text: str) -> list[str]:
    """The numbers and signs of an expression; none at all, if anything else stands in it or it is too long.

    >>> tokens_of(r"(25 − 5) \\times 4"), tokens_of("2 ** x"), tokens_of("2.5")
    (['(', '25', '-', '5', ')', '*', '4'], [], [])
    """
    text = SIGNS.sub(lambda sign: OTHER_SIGNS[sign[0]], text.strip()) if len(text) <= MAX_LENGTH else ""
    tokens, end = [], 0
    while end < len(text):
        match = TOKEN.match(text, end)
        if match is None:
            return []
        tokens.append(match[1])
        end = match.end()
    return tokens


def value_of(tokens: Sequence[str]) -> Fraction | None:
    """The exact value, or None if the tokens are no expression or divide by zero.

    >>> value_of(["8", "/", "(", "3", "-", "8", "/", "3", ")"]), value_of(["1", "/", "0"]), value_of(["1", "2"])
    (Fraction(24, 1), None, None)
    """
    reader = _Reader(tokens)
    try:
        value = reader.sum(depth=0)
    except (ValueError, ZeroDivisionError):
        return None
    return value if reader.next == "" else None


class _Reader:
    """Recursive descent, one function a level of precedence. Raises ValueError where there is no expression."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = iter(tokens)
        self.next = next(self._tokens, "")

    def sum(self, *, depth: int) -> Fraction:
        value = self._product(depth)
        while self.next in ("+", "-"):
            sign = self._take()
            other = self._product(depth)
            value = value + other if sign == "+" else value - other
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._atom(depth)
        while self.next in ("*", "/"):
            sign = self._take()
            other = self._atom(depth)
            value = value * other if sign == "*" else value / other
        return value

    def _atom(self, depth: int) -> Fraction:
        token = self._take()
        if token.isdigit():
            return Fraction(int(token))
        if token == "-" and depth < MAX_DEPTH:
            return -self._atom(depth + 1)
        if token != "(" or depth == MAX_DEPTH:
            raise ValueError(f"no number at {token!r}")
        value = self.sum(depth=depth + 1)
        if self._take() != ")":
            raise ValueError("a parenthesis is left open")
        return value

    def _take(self) -> str:
        token, self.next = self.next, next(self._tokens, "")
        return token
