"""A reward that waits, as one that asks another machine does."""

from __future__ import annotations

import time


def slow(response: str, answer: str, seconds: float, **row: object) -> float:
    time.sleep(seconds)
    return 1.0
