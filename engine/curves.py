"""Histories of numbers as text: a large curve and a small one, in blocks of eighths of a character."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

BLOCKS = "▁▂▃▄▅▆▇█"


def plot(values: Sequence[float], *, width: int, rows: int) -> list[str]:
    """The area under `values` in blocks, `width` characters wide and `rows` high, from the top.

    >>> plot([0.0, 5.0, 10.0, 15.0], width=4, rows=2)
    ['  ▃█', '▁▆██']
    """
    heights = _heights(_resampled(values, width), levels=len(BLOCKS) * rows)
    floors = [len(BLOCKS) * row for row in reversed(range(rows))]
    return ["".join(_block(height - floor) for height in heights) for floor in floors]


def sparkline(values: Iterable[float], *, width: int) -> str:
    """`values` as blocks, at most `width`; what is not a finite number is left out.

    >>> sparkline([0.0, 1.0, float("nan"), 7.0], width=8)
    '▁▂▇'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    # Never the whole block: curves below each other stay apart.
    heights = _heights(_resampled(finite, min(width, len(finite))), levels=len(BLOCKS) - 1)
    return "".join(_block(height) for height in heights)


def _heights(values: Sequence[float], *, levels: int) -> list[int]:
    """From 1 for the lowest value to `levels` for the highest."""
    low, span = min(values), max(values) - min(values)
    return [1 + round((value - low) / span * (levels - 1)) if span else 1 for value in values]


def _block(height: int) -> str:
    """One character's part of a column."""
    return BLOCKS[min(height, len(BLOCKS)) - 1] if height > 0 else " "


def _resampled(values: Sequence[float], count: int) -> list[float]:
    """Means of equal stretches of a long history; a short one is drawn out by straight lines."""
    if len(values) > count:
        return [float(part.mean()) for part in np.array_split(np.asarray(values), count)]
    places = np.linspace(0, len(values) - 1, count)
    return [float(value) for value in np.interp(places, np.arange(len(values)), values)]
