"""How much of the response says again what it has said?

The share of repeated n-grams is the repetition penalty of "Demystifying Long Chain-of-Thought Reasoning in LLMs"
(arXiv 2502.03373) as open-r1 computes it: 1 - different n-grams / all n-grams.
"""

from __future__ import annotations

from rewards.score import keeps_nothing

MAX_N = 50


@keeps_nothing
def repetition(
    response: str, answer: str, *, n: int = 3, penalty: float = 1.0, unit: str = "words", **row: object
) -> dict[str, float]:
    """`-penalty` times the share of n-grams that stand earlier in the response too; 0 where there is no n-gram.

    `unit` is `words`, between white space and whatever their case, or `characters`, for what is written without
    spaces: with words, a Chinese text is one.

    >>> repetition("a b a b a b", "", n=2), repetition("a b c d", "", n=2)
    ({'repetition': -0.6}, {'repetition': 0.0})
    """
    if unit not in ("words", "characters"):
        raise ValueError(f"unit is {unit!r}; it is 'words' or 'characters': set it in the reward's arguments")
    if not 1 <= n <= MAX_N:
        raise ValueError(f"n is {n}; it is from 1 to {MAX_N}: set it in the reward's arguments")
    share = repeated_share(response.lower().split() if unit == "words" else response, n)
    return {"repetition": -penalty * share if share else 0.0}


def repeated_share(pieces: list[str] | str, n: int) -> float:
    """Of all n-grams, the share that is there already; from 0 to below 1.

    >>> repeated_share("aaaa", 1), repeated_share("ab", 3)
    (0.75, 0.0)
    """
    number = len(pieces) - n + 1
    if number < 1:
        return 0.0
    different = {tuple(pieces[start : start + n]) for start in range(number)}
    return (number - len(different)) / number
