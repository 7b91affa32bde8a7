"""Grade-school arithmetic: is the final answer the right number?

Only what the response marks as its answer counts: the content of its last `\\boxed{...}`, or else what follows its last
`####`. A number somewhere in the text is no answer, and several different boxes are none either. Both sides become
exact fractions; nothing is evaluated, and whatever is longer than an answer can be is refused before any arithmetic.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.math.answers import MAX_LENGTH, final_answers
from rewards.score import answers_checked_by, keeps_nothing

MAX_EXPONENT = 30
"""Of `1e5`: a larger one would make a number of any size."""

WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|boxed)\s*\{([^{}]*)\}")
FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]{1,40})\s*\}\s*\{\s*([0-9]{1,40})\s*\}")
QUANTITY = re.compile(
    r"(?P<sign>[+-]?)\s*\$?\s*(?P<inner_sign>-?)"
    r"(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]{1,40})?"
    r"(?P<part>\.[0-9]{1,40})?"
    r"(?:[eE](?P<exponent>[+-]?[0-9]{1,3})|/(?P<below>[0-9]{1,40}))?"
    r"\s*[%$]?"
    r"(?P<unit>\s+[A-Za-z]{1,20}(?:[ /][A-Za-z]{1,20}){0,3})?"
)
CHANGES_THE_NUMBER = """
or and not if of to times plus minus over by divided squared cubed factorial more less than about
half halves third thirds quarter quarters tenth tenths double twice
hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens k mn bn
zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty
ninety
"""
"""Words that follow a number and are no unit: with them it is another number, or two."""


def what_is_wrong(answer: str) -> str | None:
    """What keeps a reference answer from being one number, or None.

    >>> what_is_wrong("#### 72"), what_is_wrong("blue")
    (None, "it names no number: 'blue'")
    """
    answers = final_answers(answer) or [answer]
    numbers = {number_of(text) for text in answers}
    if None in numbers:
        return f"it names no number: {answers[-1][:80]!r}"
    return "it has several boxes that differ" if len(numbers) != 1 else None


@keeps_nothing
@answers_checked_by(what_is_wrong)
def correct(response: str, answer: str, **row: object) -> dict[str, float] | None:
    """`{"correct": 1.0}` if the response's final answer is the number `answer` names; None if `answer` names none.

    `answer` may be a number or a whole GSM8K solution, which ends in `#### 72`.

    >>> correct(r"48 + 24 = 72, so \\boxed{72}.", "She sold 48 + 24 = 72.\\n#### 72")
    {'correct': 1.0}
    >>> correct("#### $1,234.50", "1234.5")
    {'correct': 1.0}
    >>> correct("The answer is 72.", "72"), correct(r"\\boxed{72} or \\boxed{73}", "72")
    ({'correct': 0.0}, {'correct': 0.0})
    """
    if what_is_wrong(answer) is not None:
        return None
    wanted = {number_of(text) for text in final_answers(answer) or [answer]}
    given = {number_of(text) for text in final_answers(response)}
    return {"correct": float(given == wanted)}


def number_of(text: str) -> Fraction | None:
    """The number that a final answer names, or None if it is anything else.

    >>> number_of("-$1,234.50 dollars."), number_of(r"\\frac{3}{4}"), number_of("50%")
    (Fraction(-2469, 2), Fraction(3, 4), Fraction(50, 1))
    >>> number_of("12,34"), number_of("5 or 6"), number_of("3 million"), number_of("1e999999999"), number_of("x")
    (None, None, None, None, None)
    """
    if len(text) > MAX_LENGTH:
        return None
    match = QUANTITY.fullmatch(plain(text))
    if match is None or not (match["whole"] or match["part"]):
        return None
    if match["sign"] and match["inner_sign"]:
        return None
    words = re.split(r"[ /]", (match["unit"] or "").lower())
    if not set(words).isdisjoint(CHANGES_THE_NUMBER.split()):
        return None
    exponent = int(match["exponent"] or 0)
    below = int(match["below"] or 1)
    if abs(exponent) > MAX_EXPONENT or below == 0 or (match["below"] and match["part"]):
        return None
    digits = (match["whole"] or "0").replace(",", "") + (match["part"] or "")
    value = Fraction(digits) * Fraction(10) ** exponent / below
    return -value if "-" in (match["sign"], match["inner_sign"]) else value


def plain(text: str) -> str:
    """An answer without the dress that LaTeX and Markdown give a number.

    >>> plain(r"$12\\text{ dollars}$."), plain(r"1{,}234"), plain(r"1\\,234\\%"), plain("**5.**")
    ('$12 dollars', '1,234', '1,234%', '5')
    """
    text = text.replace("\N{MINUS SIGN}", "-").replace("{,}", ",").replace(r"\$", "$").replace(r"\%", "%")
    text = re.sub(r",?\\[,!](?=[0-9])", ",", text)
    text = re.sub(r"\\[,;:! ]|~", " ", text)
    wrapped = ""
    while wrapped != text:
        wrapped, text = text, WRAPPER.sub(r" \1 ", text)
    # Spaces keep the 2 of a mixed number off the fraction's 1: two and a half is not twenty-one halves.
    text = " ".join(FRACTION.sub(r" \1/\2 ", text).split())
    text = text.strip("* ").removesuffix(".").strip("* ")
    if text.startswith("$") and text.endswith("$"):
        # A formula's delimiters, or a currency and a delimiter: either way the last one says nothing.
        text = text[:-1].rstrip().removesuffix(".")
    return text
