"""One call in a copy of this process, of which nothing is left when it has answered: no global, thread, file or child.

What a call writes to disk or sends over a network stays, of course.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from rewards.score import CannotJudge, FailureKind
from workers.processes import adopt_orphans, children_of, die_with, has_children, kill, kill_group

DYING_LIMIT_S = 0.5
"""A dying process closes its pipes a moment before it can be seen to be dead."""
CHUNK_BYTES = 1 << 16
END = b"\n"
"""Of an answer, in which it does not occur: one that was cut off is none."""


class Zygote:
    """This process, which has imported what the calls need, and whose copies make them."""

    def __init__(self, private: Sequence[int]) -> None:
        """`private`: descriptors that no copy may use."""
        self._private = tuple(private)
        self._kept = children_of([os.getpid()])
        """What an import started serves all calls."""
        self._pid = os.getpid()
        adopt_orphans()
        # The kernel asks rather than kills, so that the call that runs and all that it started go first.
        signal.signal(signal.SIGTERM, self._end)
        die_with(os.getppid(), by=signal.SIGTERM)

    def answer(self, work: Callable[[], bytes], *, timeout_s: float, most_bytes: int) -> bytes:
        """What `work` returns in a copy. Raises CannotJudge where it does not within `timeout_s`, or the copy dies."""
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        copy = os.fork()
        if not copy:
            self._answer_and_exit(work, writing, (reading, *self._private))
        deadline = time.monotonic() + timeout_s
        os.close(writing)
        try:
            data = _read_all(reading, copy, deadline, most_bytes)
            if data is None:
                raise CannotJudge(FailureKind.TIMEOUT, f"no answer within {timeout_s:g} s; its process was killed")
            if not data.endswith(END):
                raise CannotJudge(FailureKind.CRASH, f"the process that ran the reward died: {_how_it_died(copy)}")
            return data[: -len(END)]
        finally:
            os.close(reading)
            self._bury(copy)

    def _answer_and_exit(self, work: Callable[[], bytes], writing: int, private: Sequence[int]) -> NoReturn:
        own = os.getpid()
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            die_with(self._pid)
            for descriptor in private:
                os.close(descriptor)
            data = work() + END
            if os.getpid() == own:  # and not a copy that the reward forked and let return
                sys.stdout.flush()
                sys.stderr.flush()
                while data:
                    data = data[os.write(writing, data) :]
        finally:
            os._exit(0)

    def _bury(self, copy: int) -> None:
        kill_group(copy)
        kill([copy])
        os.waitpid(copy, 0)
        # What left the group has become a child of this process by now.
        while has_children() and (strays := children_of([self._pid]) - self._kept):
            kill(strays)
            for stray in strays:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(stray, 0)

    def _end(self, *_: object) -> NoReturn:
        while strays := children_of([self._pid]):
            for stray in strays:
                kill_group(stray)
            kill(strays)
            for stray in strays:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(stray, 0)
        os._exit(1)


def _read_all(pipe: int, copy: int, deadline: float, most_bytes: int) -> bytes | None:
    """Up to the end, or a little more than the most; None when the time is up before."""
    data = bytearray()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    with _watching(copy) as death:
        poll.register(death, select.POLLIN)
        while len(data) <= most_bytes + len(END) and not data.endswith(END):
            ready = {descriptor for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
            if not ready:
                return None
            # Dead, and nothing to read: something that the call started holds the pipe open.
            chunk = os.read(pipe, CHUNK_BYTES) if pipe in ready else b""
            if not chunk:
                break
            data += chunk
    return bytes(data)


@contextlib.contextmanager
def _watching(copy: int) -> Iterator[int]:
    """A descriptor that can be read when the process is dead."""
    descriptor = os.pidfd_open(copy)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _how_it_died(copy: int) -> str:
    deadline = time.monotonic() + DYING_LIMIT_S
    while time.monotonic() < deadline:
        # Left unreaped, so that its number stays taken until its group has been killed.
        died = os.waitid(os.P_PID, copy, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if died is not None:
            return how_it_died(-died.si_status if died.si_code != os.CLD_EXITED else died.si_status)
        time.sleep(0.002)
    return how_it_died(None)


def how_it_died(status: int | None) -> str:
    """For people; `status` as `subprocess` has it, None for a process that lives."""
    if status is None:
        return "it closed its pipe or wrote something else into it"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"it exited with code {status}"
