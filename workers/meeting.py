"""Where the ranks of a trainer find each other, on whichever nodes they are."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed
from torch.distributed import PrefixStore, TCPStore

JOINING_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingPoint:
    """The address of a store that lives as long as the run does."""

    address: str
    port: int


@contextmanager
def meeting_point(address: str) -> Iterator[MeetingPoint]:
    """A store that listens at `address` of this node alone.

    It takes its port by listening on it, here and now: a port that is chosen for others to listen on later may be
    somebody else's by then.
    """
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    yield MeetingPoint(address=address, port=store.port)


def join(meeting: MeetingPoint, *, name: str, rank: int, world_size: int, backend: str) -> None:
    """Make this process rank `rank` of the `world_size` processes that meet under `name`; all of them must call it."""
    store = TCPStore(meeting.address, meeting.port, is_master=False, timeout=JOINING_TIMEOUT)
    torch.distributed.init_process_group(
        backend, store=PrefixStore(name, store), rank=rank, world_size=world_size, timeout=JOINING_TIMEOUT
    )
