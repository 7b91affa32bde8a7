"""A reward of your own: any function of a response and the right answer."""

from __future__ import annotations


def correct(response: str, answer: str, bonus: float = 0.1, **row: object) -> dict[str, float]:
    """1 for the right sum; `bonus` more where nothing else was written.

    Named parts are summed, and each is a curve of the run: reward/correct, reward/brief.
    """
    words = response.split()
    right = bool(words) and words[-1] == answer
    return {"correct": float(right), "brief": bonus * (right and len(words) == 1)}
