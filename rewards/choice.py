"""Multiple choice: does the response settle on the right option, A to J?

What counts is, in this order: the last `<answer>...</answer>`; everything boxed; what follows "answer is" or
"answer:"; the last line where it is an option and nothing else; the options in parentheses in a last line that denies
nothing. Several different ones are no choice, and neither is one with another behind it without a reason between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.math.answers import boxed
from rewards.score import keeps_nothing

LETTERS = "ABCDEFGHIJ"
MAX_CLAIM = 300
"""Characters read after "answer:"."""
MAX_CLAIMS = 100
"""A response that names more answers has not chosen."""

CLAIM = re.compile(r"\banswer(?:\*\*)?(?:[ \t]{1,4}is)?[ \t]{0,4}[:=]|\banswer[ \t]{1,4}is\b", re.IGNORECASE)
WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]{0,300})\}")
OPTION = re.compile(r"\(?(?:option |choice )?\(?([A-Ja-j])(\)?)(?=$|[).:,;]|\s(?:because|since|as)\b)", re.IGNORECASE)
OTHER = re.compile(r"(?<![A-Za-z])\(?([A-J])\)?(?=\s*(?:$|[).:,;/&])|\s+(?:and|or)\b)")
REASON = re.compile(r"\b(?:because|since|as|for)\b", re.IGNORECASE)
NONE = re.compile(r"\s*(?:none|neither|unknown|unclear|all of|both)\b", re.IGNORECASE)
DENIES = re.compile(r"\b(?:not|no|wrong|incorrect|false|neither|nor)\b|n't\b", re.IGNORECASE)
SEVERAL = "?"
"""In place of a letter: another answer than any option."""
PARENTHESISED = re.compile(r"\(([A-J])\)")


@keeps_nothing
def correct(response: str, answer: str, *, choices: Sequence[str] = (), **row: object) -> dict[str, float] | None:
    """`{"correct": 1.0}` if the response chooses what `answer` names; None if `answer` names no option.

    `choices` are the options' texts in the order of their letters, where the row has them: then an option may be
    named by its text as well, by the answer and by the response.

    >>> correct(r"Hence \\boxed{B}.", "B"), correct("Answer: (b)", "B"), correct("(A) or (B)", "B")
    ({'correct': 1.0}, {'correct': 1.0}, {'correct': 0.0})
    >>> correct("The answer is Paris.", "B", choices=["Rome", "Paris"])
    {'correct': 1.0}
    """
    options = [plain(str(choice)) for choice in choices][: len(LETTERS)]
    wanted = letter_of(answer, options)
    if wanted in (None, SEVERAL):
        return None
    return {"correct": float(chosen(response, options) == {wanted})}


def chosen(response: str, options: Sequence[str]) -> set[str]:
    """The letters that the response settles on; one, if it has chosen."""
    before, end, _ = response.rpartition("</answer>")
    _, start, inside = before.rpartition("<answer>")
    if start and end:
        return {letter_of(inside, options) or SEVERAL}
    boxes = boxed(response)
    if boxes:
        return {letter_of(box, options) or SEVERAL for box in boxes[:MAX_CLAIMS]}
    claims = [response[match.end() : match.end() + MAX_CLAIM].lstrip("*: ") for match in CLAIM.finditer(response)]
    if claims:
        letters = {letter_of(claim.strip().partition("\n")[0], options) for claim in claims[:MAX_CLAIMS]}
        return letters - {None} if len(claims) <= MAX_CLAIMS else set()
    last = response.rstrip()[-MAX_CLAIM:].rpartition("\n")[2]
    letter = letter_of(last, options)
    if letter:
        return {letter}
    return set() if DENIES.search(last) else set(PARENTHESISED.findall(last))


def letter_of(text: str, options: Sequence[str]) -> str | None:
    """The option that a short text names, by letter or by its whole text, `plain`; `SEVERAL` if it names several or
    says that it is none of them; None if it says nothing about them.

    >>> letter_of("(C) because", []), letter_of("B or C", []), letter_of("A dog", []), letter_of("A dog.", ["a dog"])
    ('C', '?', None, 'A')
    """
    text = text.strip()[:MAX_CLAIM]
    if options.count(plain(text)) == 1:
        return LETTERS[options.index(plain(text))]
    text = WRAPPER.sub(r"\1", text).rstrip(". ").strip("*$`_ ").removeprefix("\\(").strip()
    if NONE.match(text):
        return SEVERAL
    match = OPTION.match(text)
    if match is None:
        return SEVERAL if OTHER.match(text) else None
    letter, rest = match[1].upper(), text[match.end() :]
    reason = REASON.search(rest)
    others = {other.upper() for other in OTHER.findall(rest[: reason.start()] if reason else rest)}
    text_of_another = plain(rest.strip(").:,; ")) in [own for at, own in enumerate(options) if LETTERS[at] != letter]
    if others - {letter} or text_of_another or DENIES.search(rest[: reason.start()] if reason else rest):
        return SEVERAL
    return letter if not options or LETTERS.index(letter) < len(options) else None


def plain(text: str) -> str:
    """Letters' case, white space and a full stop do not distinguish options."""
    return " ".join(WRAPPER.sub(r"\1", text).lower().split()).strip("*$ ").removesuffix(".")
