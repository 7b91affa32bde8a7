"""What a score means among its siblings: the responses to the same draw of a prompt.

Siblings are found by group id: they need not be adjacent, and groups need not be of one size, because responses that
could not be judged are missing. Everything is float64, with the variance in two passes: E[x^2] - E[x]^2 of nearly equal
scores is mostly rounding.
"""

from __future__ import annotations

from enum import Enum

import numpy as np


class Scale(Enum):
    """What an advantage is measured in."""

    GROUP = "group"
    """Standard deviations of its siblings' scores (GRPO)."""
    BATCH = "batch"
    """Standard deviations of all scores of the rollout batch (2508.08221)."""
    NONE = "none"
    """Units of score (Dr. GRPO)."""


EQUAL_TOLERANCE = 1e-8
"""Scores of a group that differ by less (relative to the largest, at least 1) are equal."""


class Singleton(Enum):
    """What a response without judged siblings is worth."""

    ZERO = "zero"
    """Nothing: there is nobody to compare it with."""
    RAW = "raw"
    """Its score as it is."""
    ERROR = "error"
    """The run stops."""


class LonelyResponse(ValueError):
    """A response has no judged sibling, and the settings ask for an error in that case."""


def sibling_rows(group_B: np.ndarray) -> list[np.ndarray]:
    """The row numbers of each group.

    >>> [rows.tolist() for rows in sibling_rows(np.array([7, 3, 7]))]
    [[1], [0, 2]]
    """
    if len(group_B) == 0:
        return []
    _, index_B = np.unique(group_B, return_inverse=True)
    order = np.argsort(index_B, kind="stable")
    return np.split(order, np.cumsum(np.bincount(index_B))[:-1])


def all_equal(scores: np.ndarray) -> bool:
    """Whether scores differ by rounding alone: dividing that by its own spread would make advantages of it.

    >>> all_equal(np.array([0.1 + 0.2, 0.3])), all_equal(np.array([1.0, 1.00001]))
    (True, False)
    """
    return bool(np.ptp(scores) <= EQUAL_TOLERANCE * max(1.0, float(np.abs(scores).max())))


def above_siblings(score_B: np.ndarray, group_B: np.ndarray, *, singleton: Singleton) -> np.ndarray:
    """Each score minus the mean of its group; exactly 0 where all siblings scored the same.

    >>> above_siblings(np.array([1.0, 0.5, 0.0]), np.array([1, 2, 1]), singleton=Singleton.RAW).tolist()
    [0.5, 0.5, -0.5]
    """
    above_B = np.zeros(len(score_B), dtype=np.float64)
    for rows in sibling_rows(group_B):
        scores = score_B[rows].astype(np.float64)
        if len(rows) == 1:
            above_B[rows] = _worth_alone(float(scores[0]), group_B[rows[0]], singleton)
        elif not all_equal(scores):
            above_B[rows] = scores - scores.mean()
    return above_B


def above_others(score_B: np.ndarray, group_B: np.ndarray, *, singleton: Singleton) -> np.ndarray:
    """Each score minus the mean of its siblings', its own left out: n / (n - 1) times `above_siblings`.

    >>> above_others(np.array([1.0, 0.5, 0.0]), np.array([1, 2, 1]), singleton=Singleton.ZERO).tolist()
    [1.0, 0.0, -1.0]
    """
    above_B = above_siblings(score_B, group_B, singleton=singleton)
    for rows in sibling_rows(group_B):
        above_B[rows] *= len(rows) / max(len(rows) - 1, 1)
    return above_B


def sibling_std(score_B: np.ndarray, group_B: np.ndarray, *, ddof: int = 1) -> np.ndarray:
    """[B] the spread of scores in each row's group; 1 where there is none to divide by.

    >>> sibling_std(np.array([1.0, 0.5, 0.0]), np.array([1, 2, 1]), ddof=0).tolist()
    [0.5, 1.0, 0.5]
    """
    std_B = np.ones(len(score_B), dtype=np.float64)
    for rows in sibling_rows(group_B):
        scores = score_B[rows].astype(np.float64)
        if len(rows) > 1 and not all_equal(scores):
            std_B[rows] = scores.std(ddof=ddof)
    return std_B


def batch_std(score_B: np.ndarray, *, ddof: int = 1) -> float:
    """The spread of all scores; 1 where there is none to divide by."""
    if len(score_B) < 2 or all_equal(score_B):
        return 1.0
    return float(score_B.astype(np.float64).std(ddof=ddof))


def _worth_alone(score: float, group: object, singleton: Singleton) -> float:
    if singleton is Singleton.ERROR:
        raise LonelyResponse(
            f"draw {group} has one judged response (score {score}), so it has no siblings to be compared with: "
            "sample more responses per prompt, look at why its siblings were not judged, or set singleton to zero"
        )
    return score if singleton is Singleton.RAW else 0.0
