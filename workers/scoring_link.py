"""The parent's end of a process that judges: its life, the pipes to it, and what its rewards print."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import subprocess
import sys
import threading
import time

from rewards.load import RewardError
from rewards.score import Failure, FailureKind
from workers.forked_call import how_it_died
from workers.processes import import_path, kill_tree
from workers.scoring_child import HEADER, Start

START_LIMIT_S = 120.0
"""For the rewards to be imported, and for a batch to be taken in: not part of any response's time."""
KILL_LIMIT_S = 5.0
CHUNK_BYTES = 1 << 16
MAX_OUTPUT_BYTES = 16 << 10
"""Of what one call prints, in the worker's log; the rest is counted."""


class ChildGone(Exception):
    """The child died, or was killed because it did not answer."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.failure = Failure(kind=kind, reason=reason)


class Child:
    """One life of the process. Started by `begin`; `interrupt` may come from any thread, all else from one."""

    def __init__(self) -> None:
        requests_out, self._requests = os.pipe()
        self._answers, answers_in = os.pipe()
        self._printed, printed_in = os.pipe()
        os.set_blocking(self._requests, False)
        self._process = subprocess.Popen(
            # -P: a `workers` or `rewards` in the current folder must not stand in for ours.
            [sys.executable, "-P", "-m", "workers.scoring_child", str(requests_out), str(answers_in), str(os.getpid())],
            pass_fds=(requests_out, answers_in),
            stdin=subprocess.DEVNULL,
            stdout=printed_in,
            stderr=printed_in,
            env={**os.environ, "PYTHONPATH": import_path()},
            start_new_session=True,
        )
        for pipe in (requests_out, answers_in, printed_in):
            os.close(pipe)
        self._reaping = threading.Lock()
        self._unread = bytearray()
        self._log = _Log()
        # poll, not select: a busy worker has more than 1024 descriptors.
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self._poll.register(self._printed, select.POLLIN)

    def begin(self, start: Start) -> list[dict[str, object]]:
        """Import the rewards; what is to be known of each. Raises RewardError, for people, where that fails."""
        try:
            self.send(pickle.dumps(start))
            message = self.receive(START_LIMIT_S, CHUNK_BYTES)
            if message["say"] == "refused":
                self.kill()
                raise RewardError(str(message["reason"]))
            if message["say"] != "ready":
                raise self.crashed()
            return message["functions"]
        except ChildGone as gone:
            specs = ", ".join(spec.source.spec for spec in start.specs)
            raise RewardError(f"reward {specs}: importing it failed: {gone.failure.reason}") from gone

    def send(self, message: bytes) -> None:
        data = memoryview(HEADER.pack(len(message)) + message)
        deadline = time.monotonic() + START_LIMIT_S
        while data:
            try:
                data = data[os.write(self._requests, data) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._requests, select.POLLOUT)
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise self._late(START_LIMIT_S) from None
            except BrokenPipeError:
                raise self.crashed() from None

    def receive(self, limit_s: float, most_bytes: int) -> dict[str, object]:
        """The next message. A message that came in time counts, even if this process was too busy to look."""
        deadline = time.monotonic() + limit_s
        size = HEADER.unpack(self._read(HEADER.size, deadline, limit_s))[0]
        if size > most_bytes:
            raise self.crashed()
        try:
            message = json.loads(self._read(size, deadline, limit_s))
        except ValueError:
            raise self.crashed() from None
        if not (isinstance(message, dict) and "say" in message):
            raise self.crashed()
        self._log.next_call()
        return message

    def is_dead(self) -> bool:
        with self._reaping:
            return self._is_dead()

    def interrupt(self) -> None:
        """Kill it and all that descends from it. Whoever waits for an answer is told that it died."""
        with self._reaping:
            if self._process.returncode is None:
                kill_tree(self._process.pid)

    def kill(self) -> None:
        """The same, and close the pipes. Killing twice is fine."""
        self.interrupt()
        # A process that sleeps in the kernel (a dead network disk) may outlive its kill; waiting would hang us too.
        deadline = time.monotonic() + KILL_LIMIT_S
        while not self._reaped() and time.monotonic() < deadline:
            time.sleep(0.001)
        if self._printed >= 0:
            self._log.take_all(self._printed)
        for pipe in (self._requests, self._answers, self._printed):
            with contextlib.suppress(OSError):
                os.close(pipe)
        self._requests = self._answers = self._printed = -1

    def crashed(self) -> ChildGone:
        """Kill it; what to raise."""
        # A dying process closes its pipes a moment before it can be seen to be dead.
        deadline = time.monotonic() + 0.5
        while not (died := self.is_dead()) and time.monotonic() < deadline:
            time.sleep(0.002)
        self.kill()
        how = how_it_died(self._process.returncode if died else None)
        return ChildGone(FailureKind.CRASH, f"the process that ran the reward died: {how}")

    def _late(self, limit_s: float) -> ChildGone:
        if self.is_dead():  # something that the reward started holds the pipe open
            return self.crashed()
        self.kill()
        return ChildGone(FailureKind.TIMEOUT, f"no answer within {limit_s:g} s; its process was killed")

    def _is_dead(self) -> bool:
        try:
            # Left unreaped, so that its number stays taken until its group has been killed.
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _reaped(self) -> bool:
        with self._reaping:
            return self._process.poll() is not None

    def _read(self, size: int, deadline: float, limit_s: float) -> bytes:
        while len(self._unread) < size:
            self._wait(deadline, limit_s)
            chunk = os.read(self._answers, CHUNK_BYTES)
            if not chunk:
                raise self.crashed()
            self._unread += chunk
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def _wait(self, deadline: float, limit_s: float) -> None:
        """Until an answer can be read. What is printed meanwhile is taken, or the child would wait for us."""
        while True:
            ready = {pipe for pipe, _ in self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
            if self._printed in ready and not self._log.take(self._printed):
                self._poll.unregister(self._printed)  # every copy of the other end is closed
            if self._answers in ready:
                return
            if time.monotonic() >= deadline:
                raise self._late(limit_s)


class _Log:
    """What one call after the other prints, cut to a length that fits a log."""

    def __init__(self) -> None:
        self._room, self._left_out = MAX_OUTPUT_BYTES, 0

    def take(self, pipe: int) -> bool:
        """What can be read; False at its end."""
        data = os.read(pipe, CHUNK_BYTES)
        shown, rest = data[: self._room], data[self._room :]
        self._room -= len(shown)
        self._left_out += len(rest)
        _to_stderr(shown)
        return bool(data)

    def take_all(self, pipe: int) -> None:
        """What is there, of a process that was killed, without waiting for more."""
        os.set_blocking(pipe, False)
        with contextlib.suppress(BlockingIOError):
            while self.take(pipe):
                pass
        self.next_call()

    def next_call(self) -> None:
        if self._left_out:
            _to_stderr(f"\n[a reward printed {self._left_out} bytes more in one call]\n".encode())
        self._room, self._left_out = MAX_OUTPUT_BYTES, 0


def _to_stderr(data: bytes) -> None:
    """Of this worker, which goes to its log."""
    with contextlib.suppress(OSError):  # closed, or a full disk: no reason to stop judging
        while data:
            data = data[os.write(2, data) :]
