"""Ranks meet at a port that is held from the moment it is told."""

from __future__ import annotations

import multiprocessing
import socket
from typing import Any

import pytest

from workers.meeting import MeetingPoint, join, meeting_point


def test_nobody_else_can_take_the_port_before_the_ranks_come() -> None:
    with meeting_point("127.0.0.1") as meeting, pytest.raises(OSError, match="in use"):
        socket.create_server((meeting.address, meeting.port))


def test_it_listens_to_the_given_address_only() -> None:
    with meeting_point("127.0.0.1") as meeting, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", meeting.port), timeout=5.0)


def test_two_groups_meet_at_one_point_without_hearing_each_other() -> None:
    context = multiprocessing.get_context("spawn")
    with meeting_point("127.0.0.1") as meeting, context.Pool(4) as pool:
        members = [("policy", 0, 1.0), ("critic", 0, 10.0), ("policy", 1, 2.0), ("critic", 1, 20.0)]
        sums = pool.starmap(_summed, [(meeting, *member) for member in members], chunksize=1)
    assert sums == [3.0, 30.0, 3.0, 30.0]


def _summed(meeting: MeetingPoint, name: str, rank: int, value: float) -> Any:
    import torch.distributed

    join(meeting, name=name, rank=rank, world_size=2, backend="gloo")
    total = torch.tensor(value)
    torch.distributed.all_reduce(total)
    return total.item()
