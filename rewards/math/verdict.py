"""Mathematics: is the final answer of a response the reference's?

Only what the response marks as its answer counts: its boxes, or else what follows its last `####`; several different
boxes are no answer. Both sides are read by our own parser (`rewards.math.parser`) into small trees and compared by
value (`rewards.math.compare`). Nothing of a text is ever executed; what is too long, too deep or too large is refused
before any arithmetic, so a verdict takes milliseconds whatever the texts hold.
"""

from __future__ import annotations

import re
from fractions import Fraction

from mpmath import mp, mpc, mpf

from rewards.math.answers import MAX_LENGTH, final_answers
from rewards.math.compare import same
from rewards.math.parser import tree_of
from rewards.math.second_opinion import opinion_of_math_verify
from rewards.math.trees import Number, Quantity, Relation, Text, Tree, Unreadable
from rewards.math.values import Budget, TooLarge, Undefined, value_at
from rewards.score import answers_checked_by, keeps_nothing

MAX_DIFFERENT_BOXES = 6
WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mathrm|mathbf|mbox|boxed|left|right)(?![A-Za-z])")
AROUND_SIGNS = re.compile(r" ?([^\w\s]) ?")
NO_WORDS = re.compile(r"[\s{}$~*\"`]+|\\[,;:! ]")


def what_is_wrong(answer: str) -> str | None:
    """What keeps a reference answer from ever being matched, or None. An answer in words is a fine one.

    >>> what_is_wrong("3/4"), what_is_wrong("the blue one")
    (None, None)
    >>> what_is_wrong(" ")
    'it is empty'
    """
    answers = final_answers(answer) or [answer]
    if any(len(text) > MAX_LENGTH for text in answers):
        return f"it has more than {MAX_LENGTH} characters"
    trees = [read(text) for text in dict.fromkeys(answers[-MAX_DIFFERENT_BOXES:])]
    if Text("") in trees:
        return "it is empty"
    if len(set(answers)) > MAX_DIFFERENT_BOXES or not all(same(tree, trees[-1]) for tree in trees):
        return "it has several boxes that differ"
    return None


@keeps_nothing
@answers_checked_by(what_is_wrong)
def correct(
    response: str,
    answer: str,
    anywhere: bool = False,
    rounding: bool = False,
    second_opinion: str = "",
    **row: object,
) -> dict[str, float] | None:
    """`{"correct": 1.0}` if the response's final answer is `answer`; None if `answer` can be no answer.

    `answer` may be plain (`3/4`), boxed, or a whole solution with a box or `####`.
    `anywhere`: a response without a box or `####` may say "the answer is 5", or at last just end with a number.
    `rounding`: a reference with decimals (`3.14`) is also met by a number that rounds to it; else equality is exact.
    `second_opinion`: `math_verify` adds that library's verdict as a part beside ours, which alone trains.

    >>> correct(r"so \\boxed{\\dfrac{3}{4}}", "0.75"), correct(r"\\boxed{2, 1}", r"\\{1, 2\\}")
    ({'correct': 1.0}, {'correct': 1.0})
    >>> correct("The answer is 5.", "5"), correct("The answer is 5.", "5", anywhere=True)
    ({'correct': 0.0}, {'correct': 1.0})
    >>> correct(r"\\boxed{\\pi}", "3.14"), correct(r"\\boxed{\\pi}", "3.14", rounding=True)
    ({'correct': 0.0}, {'correct': 1.0})
    """
    if second_opinion not in ("", "math_verify"):
        raise ValueError(f"second_opinion is {second_opinion!r}; there is math_verify, or nothing")
    if what_is_wrong(answer) is not None:
        return None
    wanted = read((final_answers(answer) or [answer])[-1])
    given = the_answer(final_answers(response, anywhere=anywhere))
    right = given is not None and (same(given, wanted) or (rounding and rounds_to(given, wanted)))
    if not second_opinion:
        return {"correct": float(right)}
    return {"correct": float(right), "math_verify": opinion_of_math_verify(given, wanted), "total": float(right)}


def the_answer(answers: list[str]) -> Tree | None:
    """What several markings agree on, or None."""
    different = list(dict.fromkeys(answers))
    if not different or len(different) > MAX_DIFFERENT_BOXES or any(len(text) > MAX_LENGTH for text in different):
        return None
    trees = [read(text) for text in different]
    if trees[-1] == Text("") or not all(same(tree, trees[-1]) for tree in trees[:-1]):
        return None
    return trees[-1]


def read(text: str) -> Tree:
    """The tree of an answer, or its plain words where it is no mathematics that we know.

    >>> read(r"\\text{The Blue one.}"), read("Yes") == read(r"\\textbf{yes}")
    (Text(words='the blue one'), True)
    """
    try:
        return tree_of(text)
    except Unreadable:
        words = NO_WORDS.sub(" ", WRAPPED.sub(" ", text[: MAX_LENGTH + 1])).casefold()
        return Text(AROUND_SIGNS.sub(r"\1", " ".join(words.split())).strip(" .,;:!'()"))


def rounds_to(given: Tree, wanted: Tree) -> bool:
    """Whether `given`, written with as many decimals as `wanted` has, would be `wanted`."""
    given, wanted = (_bare(tree) for tree in (given, wanted))
    if not isinstance(wanted, Number) or not wanted.decimals:
        return False
    if isinstance(given, Number) and 0 < given.decimals < wanted.decimals:
        return False
    try:
        value, _ = value_at(given, {}, Budget())
        distance = abs(value - wanted.value) if isinstance(value, Fraction) else _distance(value, wanted.value)
    except (TooLarge, Undefined):
        return False
    return distance <= Fraction(1, 2 * 10**wanted.decimals)


def _distance(value: object, wanted: Fraction) -> Fraction:
    with mp.workprec(2000):
        difference = abs(value - mpf(wanted.numerator) / wanted.denominator)
        if isinstance(value, mpc) and value.imag != 0:
            return Fraction(1)
        return Fraction(int(mp.floor(difference * 10**120)), 10**120)


def _bare(tree: Tree) -> Tree:
    while isinstance(tree, Relation | Quantity):
        tree = tree.value if isinstance(tree, Quantity) else tree.members[-1]
    return tree
