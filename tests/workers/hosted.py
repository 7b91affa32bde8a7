"""A place for the actors of a test, as a run makes one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from workers.config import ClusterConfig
from workers.failures import Roster
from workers.group import Hosting
from workers.placement import Place, connected, reserved


@contextmanager
def hosting_for(places: Sequence[Place], logs: Path, *, call_timeout_s: float, address: str = "") -> Iterator[Hosting]:
    """In a cluster of its own, or the one at the address."""
    with connected(ClusterConfig(address=address), places), reserved(places, timeout_s=60.0) as placement:
        yield Hosting(
            placement=placement,
            places=tuple(places),
            environment={},
            roster=Roster(logs),
            call_timeout_s=call_timeout_s,
        )
