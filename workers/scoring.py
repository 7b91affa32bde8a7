"""Runs a reward in a process that can be killed, so that no response can stop the others from being judged.

A response that hangs, crashes or raises costs its own score and nothing else: its process is replaced and the rest of
the batch goes on. What could not be judged is a `Failure` of some kind, never a zero.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rewards.item import Item
from rewards.load import RewardError
from rewards.score import Failure, FailureKind, Judgement, judgement_of
from rewards.spec import RewardSpec
from workers.scoring_child import HEADER, MAX_ANSWER_BYTES, Limits, Start, encode_item

START_LIMIT_S = 120.0
"""For the reward to be imported, and for a batch to be taken in: not part of any response's time."""
MAX_DEATHS_IN_A_ROW = 32
"""Killed or crashed processes without one answer in between: then the reward is broken, not the responses."""
KILL_LIMIT_S = 5.0
ROOT = Path(__file__).resolve().parents[1]
"""Where the child finds `workers` and `rewards`, whatever the current folder."""


class RewardProcess:
    """The functions that judge a run, behind a process boundary. One caller at a time.

    Start and use it on a thread that lives as long as it does: the kernel ties the child's life to that thread.
    """

    def __init__(self, specs: Sequence[RewardSpec], limits: Limits) -> None:
        self._specs = tuple(specs)
        self._limits = limits
        self._deaths_in_a_row = 0
        self._closed = False
        self._child: _Child | None = _Child(self._start())

    def judge(self, function: int, items: Sequence[Item]) -> tuple[Judgement, ...]:
        """One judgement an item, in order, by one of the functions. Each item has `timeout_s` from when it is begun."""
        requests = tuple(encode_item(item) for item in items)
        judgements: list[Judgement] = []
        try:
            while len(judgements) < len(requests):
                self._judge_until_death(function, requests[len(judgements) :], judgements)
        except BaseException:  # an interrupted batch must not answer for the next one
            self._bury()
            raise
        return tuple(judgements)

    def close(self) -> None:
        """Kill the process and all that the reward started in its group. Closing twice is fine."""
        self._closed = True
        self._bury()

    def _judge_until_death(self, function: int, requests: tuple[bytes, ...], judgements: list[Judgement]) -> None:
        """Append the judgements of `requests`; when the process dies, a failure for the item it was on is the last."""
        started, spec = False, self._specs[function]
        try:
            child = self._living_child()
            child.send(pickle.dumps((function, requests)))
            child.expect("started", START_LIMIT_S)
            started = True
            for _ in requests:
                judgements.append(child.judgement(self._limits.timeout_s, spec.source.name))
                self._deaths_in_a_row = 0
        except _ChildGone as gone:
            self._bury()
            self._deaths_in_a_row += 1
            if self._deaths_in_a_row >= MAX_DEATHS_IN_A_ROW:
                raise RuntimeError(
                    f"reward {spec.source.spec}: its process died {self._deaths_in_a_row} times in a row without "
                    f"judging one response; the last time: {gone.failure.reason}. "
                    "Try the reward on a few responses by hand, or raise reward.timeout_s"
                ) from gone
            if started:
                judgements.append(gone.failure)

    def _living_child(self) -> _Child:
        if self._closed:
            raise ValueError(f"the process of {told_specs(self._specs)} is closed")
        if self._child is not None and self._child.is_dead():
            self._bury()
        if self._child is None:
            self._child = _Child(self._start())
        return self._child

    def _start(self) -> Start:
        import_path = tuple(os.path.abspath(entry) for entry in sys.path)
        return Start(specs=self._specs, limits=self._limits, import_path=import_path)

    def _bury(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


def told_specs(specs: Sequence[RewardSpec]) -> str:
    """For people."""
    return f"reward {', '.join(spec.source.spec for spec in specs)}"


class _ChildGone(Exception):
    """The child died, or was killed because it did not answer."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.failure = Failure(kind=kind, reason=reason)


class _Child:
    """One life of the process, and the pipes to it."""

    def __init__(self, start: Start) -> None:
        requests_out, self._requests = os.pipe()
        self._answers, answers_in = os.pipe()
        os.set_blocking(self._requests, False)
        inherited = os.environ.get("PYTHONPATH")
        self._process = subprocess.Popen(
            # -P: a `workers` or `rewards` in the current folder must not stand in for ours.
            [sys.executable, "-P", "-m", "workers.scoring_child", str(requests_out), str(answers_in), str(os.getpid())],
            pass_fds=(requests_out, answers_in),
            stdin=subprocess.DEVNULL,
            stdout=2,  # what the reward prints goes to this worker's log
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{inherited}" if inherited else str(ROOT)},
            start_new_session=True,
        )
        os.close(requests_out)
        os.close(answers_in)
        try:
            self.send(pickle.dumps(start))
            self.expect("ready", START_LIMIT_S)
        except _ChildGone as gone:
            raise RewardError(f"{told_specs(start.specs)}: importing it failed: {gone.failure.reason}") from gone
        except BaseException:
            self.kill()
            raise

    def send(self, message: bytes) -> None:
        data = memoryview(HEADER.pack(len(message)) + message)
        deadline = time.monotonic() + START_LIMIT_S
        while data:
            self._wait(self._requests, select.POLLOUT, deadline, START_LIMIT_S)
            try:
                data = data[os.write(self._requests, data) :]
            except BrokenPipeError:
                raise self._crashed() from None

    def expect(self, word: str, limit_s: float) -> None:
        message = self.receive(limit_s)
        if message["say"] == "refused":
            self.kill()
            raise RewardError(str(message["reason"]))
        if message["say"] != word:
            raise self._crashed()

    def receive(self, limit_s: float) -> dict[str, object]:
        """The next message. A message that came in time counts, even if this process was too busy to look."""
        deadline = time.monotonic() + limit_s
        size = HEADER.unpack(self._read(HEADER.size, deadline, limit_s))[0]
        if size > MAX_ANSWER_BYTES:
            raise self._crashed()
        try:
            message = json.loads(self._read(size, deadline, limit_s))
        except ValueError:
            raise self._crashed() from None
        if not (isinstance(message, dict) and "say" in message):
            raise self._crashed()
        return message

    def judgement(self, limit_s: float, name: str) -> Judgement:
        """The next message as a record, made here from plain numbers and text and so finite by construction."""
        message = self.receive(limit_s)
        try:
            if message["say"] == "failure":
                return Failure(kind=FailureKind(message["kind"]), reason=str(message["reason"]))
            return judgement_of({**message["parts"], "total": message["total"]}, name=name)
        except (KeyError, TypeError, ValueError):
            raise self._crashed() from None

    def is_dead(self) -> bool:
        try:
            # Left unreaped, so that its number stays taken until its group has been killed.
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def kill(self) -> None:
        """End the process and its group, at once. Killing twice is fine."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # A process that sleeps in the kernel (a dead network disk) may outlive its kill; waiting would hang us too.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=KILL_LIMIT_S)
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                os.close(pipe)
        self._requests = self._answers = -1

    def _read(self, size: int, deadline: float, limit_s: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(self._answers, select.POLLIN, deadline, limit_s)
            chunk = os.read(self._answers, size - len(data))
            if not chunk:
                raise self._crashed()
            data += chunk
        return bytes(data)

    def _wait(self, pipe: int, event: int, deadline: float, limit_s: float) -> None:
        # poll, not select: a busy worker has more than 1024 descriptors.
        poll = select.poll()
        poll.register(pipe, event)
        if poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return
        if self.is_dead():  # something that the reward started holds the pipe open
            raise self._crashed()
        self.kill()
        raise _ChildGone(FailureKind.TIMEOUT, f"no answer within {limit_s:g} s; its process was killed")

    def _crashed(self) -> _ChildGone:
        # A dying process closes its pipes a moment before it can be seen to be dead.
        deadline = time.monotonic() + 0.5
        while not (died := self.is_dead()) and time.monotonic() < deadline:
            time.sleep(0.002)
        self.kill()
        status = self._process.returncode
        if not died or status is None:
            how = "it closed its pipe or wrote something else into it"
        elif status < 0:
            how = f"killed by {signal.Signals(-status).name}"
        else:
            how = f"it exited with code {status}"
        return _ChildGone(FailureKind.CRASH, f"the process that ran the reward died: {how}")
