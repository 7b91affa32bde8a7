"""The response is the answer, character for character: the reward of the arithmetic task."""

from __future__ import annotations

from rewards.score import keeps_nothing


@keeps_nothing
def exact(response: str, answer: str, **row: object) -> float:
    """1 if the response, without the white space around it, is the answer; else 0.

    >>> exact(" 46\\n", "46")
    1.0
    >>> exact("046", "46"), exact("46.", "46"), exact("46 46", "46")
    (0.0, 0.0, 0.0)
    """
    return float(response.strip() == answer)
