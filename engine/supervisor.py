"""A run lives in a process of its own, and this one watches over it: what kills a run's process does not end the run.

The watcher is light. It passes on the signals that it gets, gives the run its grace to save, buries what a run leaves
behind, and starts it again from its newest checkpoint. On a cluster it is the process of the Ray job.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from types import FrameType

import psutil

from engine.stopping import ONE_REQUEST_S, STOP_SIGNALS
from workers.processes import adopt_orphans, descendants_of, die_with, kill, kill_tree

WORKER_DIED = 3
"""The exit code of a run of which a worker died that could not be replaced; it may go on from its newest checkpoint."""
LEFT_BEHIND_S = 5.0
"""What a run's processes have after its end to end by themselves."""
AGENTS_OF_RAY = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They serve a node, outlive it by a minute, and hear no SIGTERM."""
BEFORE_IT_SAYS_S = 10.0
"""The grace of a run that has not read its configuration yet."""
BEGAN_S = psutil.Process().create_time()
"""When the command began; the run's own process came a moment later."""


class Terms:
    """What the run tells its watcher, in memory that both of them see."""

    _LAYOUT = struct.Struct("qqd")

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self.agree(max_restarts=0, grace_s=BEFORE_IT_SAYS_S)

    def agree(self, *, max_restarts: int, grace_s: float) -> None:
        """From now on the run may be restarted, and is given so long to stop."""
        self._write(max_restarts, self.commits, grace_s)

    def committed(self) -> None:
        """There is a new checkpoint."""
        self._write(self.max_restarts, self.commits + 1, self.grace_s)

    @property
    def max_restarts(self) -> int:
        return self._LAYOUT.unpack_from(self._page)[0]

    @property
    def commits(self) -> int:
        return self._LAYOUT.unpack_from(self._page)[1]

    @property
    def grace_s(self) -> float:
        return self._LAYOUT.unpack_from(self._page)[2]

    def _write(self, max_restarts: int, commits: int, grace_s: float) -> None:
        self._LAYOUT.pack_into(self._page, 0, max_restarts, commits, grace_s)


def supervised(attempt: Callable[[Terms, bool], int]) -> int:
    """The exit code of the run that `attempt` makes, in a process of its own; `attempt` is told whether it is again.

    Where that process is killed, or says `WORKER_DIED`, it is made again: as often in a row without a new checkpoint
    between as the run's terms allow. Returns 128 + n for a run that signal n asked to stop; in the run's own process,
    what `attempt` returns.
    """
    return _Watch(attempt).result()


class _Watch:
    def __init__(self, attempt: Callable[[Terms, bool], int]) -> None:
        self._attempt, self._terms = attempt, Terms()
        self._run = 0
        """Its process; 0 while there is none."""
        self._asked: int | None = None
        """The signal that asked it to stop."""
        self._asked_s = 0.0
        self._is_hurried = False

    def result(self) -> int:
        adopt_orphans()
        in_vain, again = 0, False
        while True:
            commits = self._terms.commits
            if self._fork() == 0:
                return self._attempt(self._terms, again)
            code = self._wait()
            if code < 0 and self._asked is None:
                _tell(f"the run's process was killed by {signal.Signals(-code).name}")
            self._bury()
            if self._asked is not None:
                return 128 + self._asked
            if code >= 0 and code != WORKER_DIED:
                return code
            in_vain = 1 if self._terms.commits > commits else in_vain + 1
            left = self._terms.max_restarts - in_vain
            if left < 0:
                return WORKER_DIED
            _tell(f"going on from the newest checkpoint (run.max_restarts: {left} left)")
            again = True

    def _fork(self) -> int:
        """0 in the run's process. In a group of its own: what a terminal sends reaches it once, through this one."""
        watcher = os.getpid()
        # Held back until both sides have their handlers.
        held = {*STOP_SIGNALS, signal.SIGUSR1, signal.SIGALRM}
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        sys.stdout.flush()
        sys.stderr.flush()
        self._run = os.fork()
        if self._run == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may write to the terminal all the same
            for number in held:
                signal.signal(number, signal.SIG_DFL)
            die_with(watcher)
        else:
            for number in STOP_SIGNALS:
                signal.signal(number, self._pass_on_stop)
            signal.signal(signal.SIGUSR1, self._pass_on)
            signal.signal(signal.SIGALRM, self._lose_patience)
        asked_before = self._asked is not None  # before there was anybody to ask
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        if self._run and asked_before:
            kill_tree(self._run)
        return self._run

    def _wait(self) -> int:
        """The exit code, or minus the signal that killed it. Adopted orphans that end meanwhile are buried."""
        while True:
            process, status = os.waitpid(-1, 0)
            if process == self._run:
                self._run = 0
                signal.setitimer(signal.ITIMER_REAL, 0)
                return os.waitstatus_to_exitcode(status)

    def _bury(self) -> None:
        """Whatever the run has started and not ended."""
        deadline = time.monotonic() + LEFT_BEHIND_S
        while left := _unburied():
            is_over = self._is_hurried or time.monotonic() > deadline
            kill(left if is_over else filter(_is_agent_of_ray, left))
            time.sleep(0.02)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._run:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._run, number)

    def _pass_on_stop(self, number: int, frame: FrameType | None) -> None:
        """The first one is passed on, and gives the run its grace; the second one ends it."""
        if self._asked is None:
            self._asked, self._asked_s = number, time.monotonic()
            self._pass_on(number, frame)
            signal.setitimer(signal.ITIMER_REAL, self._terms.grace_s)
        elif time.monotonic() - self._asked_s > ONE_REQUEST_S:
            self._end_it()

    def _lose_patience(self, number: int, frame: FrameType | None) -> None:
        _tell(f"the run did not stop within run.grace_s={self._terms.grace_s:g}")
        self._end_it()

    def _end_it(self) -> None:
        self._is_hurried = True
        if self._run:
            kill_tree(self._run)


def _unburied() -> set[int]:
    """Descendants of this process that live, after those that do not were asked about."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return descendants_of(os.getpid())


def _is_agent_of_ray(process: int) -> bool:
    try:
        return " ".join(psutil.Process(process).cmdline()).startswith(AGENTS_OF_RAY)
    except psutil.Error:
        return False


def _tell(text: str) -> None:
    print(f"heliostat: {text}", file=sys.stderr, flush=True)
