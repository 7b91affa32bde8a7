"""The wait for a team's constructors, told as it goes on, and how long each role took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from workers.failures import Roster
    from workers.group import WorkerGroup

Announce = Callable[[str], None]
TookS = Callable[[Mapping[str, float]], None]
"""Is told seconds by name."""
MOST_NAMED = 4
"""Workers that a line about the start names."""


def await_all(
    groups: Sequence[WorkerGroup], roster: Roster, *, timeout_s: float, announce: Announce
) -> dict[str, float]:
    """Wait for every constructor; the first that fails fails the start, with its own error.

    Returns seconds by role, until the last of its copies was ready.
    """
    waiting = {ref: (group, name) for group in groups for name, ref in group.ready()}
    if not waiting:
        return {}
    announce(f"starting {', '.join(name for _, name in waiting.values())}")
    began, took_s = time.monotonic(), {}
    with roster.waiting(list(waiting), role="whole", verb="start", limit_s=timeout_s) as slices_s:
        while waiting:
            for ref in ray.wait(list(waiting), num_returns=1, timeout=next(slices_s))[0]:
                group, name = waiting.pop(ref)
                group.wait([ref], verb="start")
                took_s[group.role] = time.monotonic() - began
                announce(f"{name} is ready{_still_waiting([name for _, name in waiting.values()])}")
    return took_s


def _still_waiting(names: list[str]) -> str:
    """A few of them by name."""
    if not names:
        return ""
    others = len(names) - MOST_NAMED
    return f", waiting for {', '.join(names[:MOST_NAMED])}" + (f" and {others} more" if others > 0 else "")
