"""Multiple choice: does the response settle on the right option, A to J?

What counts is, in this order: everything boxed; what follows "answer is" or "answer:"; the last line where it is an
option and nothing else; the options in parentheses. Several different ones are no choice.
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
ANOTHER = re.compile(r"[).:,;\s]*(?:(?:and|or)\s)?\(?[A-J]\)?(?:\W*$|[,;/&)]|\s(?:and|or)\b)")
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
    if wanted is None:
        return None
    return {"correct": float(chosen(response, options) == {wanted})}


def chosen(response: str, options: Sequence[str]) -> set[str]:
    """The letters that the response settles on; one, if it has chosen."""
    boxes = boxed(response)
    if boxes:
        # A box that is no option is another answer: it stays in the set, under a name that no option has.
        return {letter_of(box, options) or "?" for box in boxes[:MAX_CLAIMS]}
    claims = [response[match.end() : match.end() + MAX_CLAIM].lstrip("*: ") for match in CLAIM.finditer(response)]
    if claims:
        letters = {letter_of(claim.strip().partition("\n")[0], options) for claim in claims[:MAX_CLAIMS]}
        return letters - {None} if len(claims) <= MAX_CLAIMS else set()
    letter = letter_of(response.rstrip()[-MAX_CLAIM:].rpartition("\n")[2], options)
    return {letter} if letter else set(PARENTHESISED.findall(response))


def letter_of(text: str, options: Sequence[str]) -> str | None:
    """The option that a short text names, by letter or by its whole text, `plain`; None if it names none or several.

    >>> letter_of("(C) because", []), letter_of("B or C", []), letter_of("A dog", []), letter_of("A dog.", ["a dog"])
    ('C', None, None, 'A')
    """
    text = text.strip()[:MAX_CLAIM]
    if options.count(plain(text)) == 1:
        return LETTERS[options.index(plain(text))]
    text = WRAPPER.sub(r"\1", text).strip("*$`_ ").removeprefix("\\(").strip()
    match = OPTION.match(text)
    if match is None or ANOTHER.match(text, match.end()):
        return None
    letter = match[1].upper()
    return letter if not options or LETTERS.index(letter) < len(options) else None


def plain(text: str) -> str:
    """Letters' case, white space and a full stop do not distinguish options."""
    return " ".join(WRAPPER.sub(r"\1", text).lower().split()).strip("*$ ").removesuffix(".")
