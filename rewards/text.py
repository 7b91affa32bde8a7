"""Is the response the text that was asked for, whole or in part?

`exact` and `f1` are SQuAD's two measures (arXiv 1606.05250): without case, punctuation and English articles.
"""

from __future__ import annotations

import string
from collections import Counter

from rewards.score import keeps_nothing

MAX_LENGTH = 20_000
"""Characters that `similar` compares; its work grows with the product of both lengths."""
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@keeps_nothing
def exact(response: str, answer: str, **row: object) -> dict[str, float] | None:
    """1 if response and answer have the same words in the same order, else 0; None for an answer of white space.

    >>> exact("The Eiffel Tower.", "eiffel tower"), exact("Eiffel", "eiffel tower")
    ({'exact': 1.0}, {'exact': 0.0})
    """
    if not answer.strip():
        return None
    return {"exact": float(words(response) == words(answer) if words(answer) else same(response, answer))}


@keeps_nothing
def f1(response: str, answer: str, **row: object) -> dict[str, float] | None:
    """The harmonic mean of precision and recall of the answer's words; their order is not judged. None for an answer of
    white space.

    >>> f1("in the Eiffel Tower in Paris", "Eiffel Tower")["f1"], f1("", "Eiffel Tower")["f1"]
    (0.5714285714285714, 0.0)
    """
    given, wanted = words(response), words(answer)
    if not answer.strip():
        return None
    if not wanted:
        return {"f1": float(same(response, answer))}
    shared = (Counter(given) & Counter(wanted)).total()
    return {"f1": 2 * shared / (len(given) + len(wanted))}


@keeps_nothing
def similar(response: str, answer: str, **row: object) -> dict[str, float] | None:
    """From 0 to 1: twice the longest common subsequence over both lengths, in characters, white space around left out.

    Never less than what difflib's `ratio` says of the two. A response of more than `MAX_LENGTH` characters scores 0;
    None for such an answer.

    >>> similar("abcd", "abd")["similar"], similar("dcba", "abcd")["similar"]
    (0.8571428571428571, 0.25)
    """
    given, wanted = response.strip(), answer.strip()
    if len(wanted) > MAX_LENGTH:
        return None
    if len(given) > MAX_LENGTH:
        return {"similar": 0.0}
    both = len(given) + len(wanted)
    return {"similar": 2 * common_subsequence(given, wanted) / both if both else 1.0}


def same(response: str, answer: str) -> bool:
    """Of an answer that is all articles and punctuation, as the letter A is.

    >>> same(" a", "A"), same("", "A")
    (True, False)
    """
    return response.strip().casefold() == answer.strip().casefold()


def words(text: str) -> list[str]:
    """SQuAD's normalised words.

    >>> words("A man, a plan -- the U.S.")
    ['man', 'plan', 'us']
    """
    return [word for word in text.lower().translate(WITHOUT_PUNCTUATION).split() if word not in ("a", "an", "the")]


def common_subsequence(first: str, second: str) -> int:
    """The length of the longest common subsequence, a row of the table in one integer (Hyyrö 2004).

    >>> common_subsequence("nematode knowledge", "empty bottle")
    7
    """
    places: dict[str, int] = {}
    for index, letter in enumerate(first):
        places[letter] = places.get(letter, 0) | 1 << index
    everywhere = (1 << len(first)) - 1
    row = everywhere
    for letter in second:
        here = row & places.get(letter, 0)
        row = (row + here | row - here) & everywhere
    return len(first) - row.bit_count()
