"""The parent's side: programs and questions go in, claims come out.

    with Sandbox(limits=Limits(timeout_s=2)) as sandbox:
        sandbox.script("print(input())", stdin="5")

Expected values stay here. Everything that a program writes is read with a limit, and is a claim, whatever it says.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from pathlib import Path
from types import TracebackType

from rewards.sandbox import cgroups, values
from rewards.sandbox.harness import READY
from rewards.sandbox.layers import REQUIRED, Layer, layers_of, refusal

START_S = 20.0
"""Until the walls are up, or a program begins: longer is the machine's trouble, not the program's."""
STDERR_BYTES = 2000
"""Kept; the rest is read and dropped."""
BEYOND_MEMORY_MB = 64
"""A control group counts the folder's files, too."""
OWN_PROCESSES = 3
"""Launcher, keeper, and one that is gone before programs run."""
FIRST_UID, UIDS = 1_900_000_000, 1_000_000
"""Users that no system hands out; one pair a slot."""
CODE = str(Path(__file__).parents[2])
START = f"""
import json, socket, sys
sys.path.insert(0, {CODE!r})
from rewards.sandbox.keeper import main
main(json.loads(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
"""


class SandboxRefused(Exception):
    """This machine gives too few walls: for people."""


class SandboxError(Exception):
    """The sandbox itself failed; nothing is known about the program."""


class Ended(Enum):
    """How a program came to its end."""

    EXIT = "exit"
    TIMEOUT = "timeout"
    OUTPUT = "output"
    """It wrote more than it may."""
    KILLED = "killed"
    """By a signal, as by the kernel's for want of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one process of a program may use.

    Example:
        Limits(timeout_s=2.0, memory_mb=256)
    """

    timeout_s: float = 6.0
    """Wall clock, from when the program begins, or from a question to its answer."""
    memory_mb: int = 512
    disk_mb: int = 16
    output_bytes: int = 1 << 20
    processes: int = 32
    """Threads, in fact: a program cannot fork."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is known of a process that has ended.

    Example:
        Outcome(ended=Ended.EXIT, code=0, stdout="5\\n", stderr="", claims=())
    """

    ended: Ended
    code: int
    """The exit status; 0 is well. Negative: the signal."""
    stdout: str
    stderr: str
    claims: tuple[Claim, ...]
    """Answers to the questions, in order; fewer where it ended early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An answer to one question: a value of plain types, or what went wrong."""

    value: object
    error: str


class Sandbox:
    """Some slots, each running one program at a time. Threads may share it; a forked process may not."""

    def __init__(
        self,
        *,
        limits: Limits,
        slots: int = 2,
        allow_missing: Sequence[str] = (),
        python: str = sys.executable,
    ) -> None:
        """Raises SandboxRefused where walls are missing that `allow_missing` does not name."""
        if sys.platform != "linux":
            raise SandboxRefused(f"programs are run on Linux only, in namespaces; this is {sys.platform}")
        self._allow_missing = tuple(allow_missing)
        self._slots = [_Slot(number, limits, python) for number in range(slots)]
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        try:
            self.layers = self._slots[0].start()
            wrong = refusal(self.layers, self._allow_missing)
            if wrong:
                raise SandboxRefused(wrong)
        except BaseException:
            self.close()
            raise

    def script(self, source: str, *, stdin: str, timeout_s: float | None = None) -> Outcome:
        """Run a program with this standard input; `timeout_s` in place of the limits' own."""
        with self._slot() as slot:
            return _Run(slot, source, stdin, (), timeout_s).outcome()

    def ask(self, source: str, questions: Sequence[Mapping[str, object]], *, timeout_s: float | None = None) -> Outcome:
        """Execute a program's definitions, then put the questions, one after the answer to the other.

        A question is `{"expression": text, "before": text, "candidate": name}` or `{"call": name, "arguments": text}`,
        the arguments as `values.write` writes them.
        """
        with self._slot() as slot:
            return _Run(slot, source, "", questions, timeout_s).outcome()

    @contextmanager
    def _slot(self) -> Iterator[_Slot]:
        slot = self._free.get()
        try:
            if slot.launcher is None:
                wrong = refusal(slot.start(), self._allow_missing)
                if wrong:
                    raise SandboxRefused(wrong)
            yield slot
        except BaseException:
            # Its state is unknown: the next program gets new walls.
            slot.stop()
            raise
        finally:
            self._free.put(slot)

    def close(self) -> None:
        for slot in self._slots:
            slot.stop()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Slot:
    """A launcher and its keeper."""

    def __init__(self, number: int, limits: Limits, python: str) -> None:
        self.number = number
        self.limits = limits
        self.python = python
        self.launcher: subprocess.Popen[bytes] | None = None
        self.groups: list[Path] = []

    def start(self) -> tuple[Layer, ...]:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = mine
        memory_mb, processes = self.limits.memory_mb + BEYOND_MEMORY_MB, self.limits.processes + OWN_PROCESSES
        self.groups = cgroups.make(self.number, memory_mb=memory_mb, processes=processes)
        root = tempfile.mkdtemp(prefix=f"heliostat-sandbox-{os.getpid()}-")
        settings = {
            "parent": os.getpid(),
            "code": CODE,
            "root": root,
            "uid": FIRST_UID + (os.getpid() % UIDS) * 128 + 2 * self.number,
            "has_cgroup": bool(self.groups),
        }
        # Isolated, without site-packages, without an environment: what is not there cannot be found by a program.
        command = [self.python, "-I", "-S", "-X", "utf8", "-c", START, json.dumps(settings), str(theirs.fileno())]
        try:
            self.launcher = subprocess.Popen(
                command, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()], cwd="/",
            )  # fmt: skip
            theirs.close()
            # Before it forks: joining later would take ten milliseconds for every program.
            for group in self.groups:
                (group / "cgroup.procs").write_text(str(self.launcher.pid))
            return layers_of(self._hello())
        except BaseException:
            self.stop()
            raise
        finally:
            os.rmdir(root)

    def _hello(self) -> dict[str, str]:
        self.control.settimeout(START_S)
        try:
            said = self.control.recv(65536)
        except TimeoutError:
            said = b""
        if not said:
            raise SandboxError(f"the sandbox does not start: {self.last_words() or f'silent for {START_S:.0f} s'}")
        self.control.settimeout(None)
        return json.loads(said)["missing"]

    def last_words(self) -> str:
        """What a keeper that has died said; it is ended if it has not."""
        self.launcher.kill()
        return self.launcher.stderr.read(65536).decode(errors="replace")[-1000:]

    def stop(self) -> None:
        if self.launcher is None:
            return
        self.control.close()
        self.launcher.kill()
        self.launcher.wait()
        self.launcher.stderr.close()
        self.launcher = None
        self._remove_groups()

    def _remove_groups(self) -> None:
        # The keeper is killed by its launcher's end: a moment later.
        for _ in range(200):
            cgroups.remove(self.groups)
            if not any(group.exists() for group in self.groups):
                break
            time.sleep(0.005)
        self.groups = []


class _Run:
    """One program in a slot."""

    def __init__(
        self,
        slot: _Slot,
        source: str,
        stdin: str,
        questions: Sequence[Mapping[str, object]],
        timeout_s: float | None,
    ) -> None:
        self._slot = slot
        self._limits = slot.limits if timeout_s is None else replace(slot.limits, timeout_s=timeout_s)
        self._questions = list(questions)
        self._asks = bool(questions)
        self._nonce = secrets.token_hex(16)
        self._claims: list[Claim] = []
        self._heard = bytearray()
        self._unsent = b""
        self._has_begun = False
        self._ended: Ended | None = None
        self._streams: dict[int, bytearray] = {}
        self._deadline = time.monotonic() + START_S
        self._open(source, stdin)

    def _open(self, source: str, stdin: str) -> None:
        self._out, out = os.pipe2(os.O_CLOEXEC)
        self._err, err = os.pipe2(os.O_CLOEXEC)
        self._channel, channel = socket.socketpair()
        files = [_sealed(source), _sealed(stdin), out, err, channel.fileno()]
        self._streams = {self._out: bytearray(), self._err: bytearray()}
        for fd in self._streams:
            os.set_blocking(fd, False)
        self._channel.setblocking(False)
        limits = self._limits
        asked = {
            "do": "run",
            "asks": self._asks,
            "memory_mb": limits.memory_mb,
            "disk_mb": limits.disk_mb,
            "processes": limits.processes,
            "cpu_s": int(limits.timeout_s * max(1, len(self._questions))) + 2,
        }
        try:
            socket.send_fds(self._slot.control, [json.dumps(asked).encode()], files)
        except OSError as error:
            self._close()
            raise SandboxError(f"the sandbox does not listen: {error}") from error
        finally:
            for fd in files[:4]:
                os.close(fd)
            channel.close()

    def _close(self) -> None:
        for fd in self._streams:
            os.close(fd)
        self._channel.close()

    def outcome(self) -> Outcome:
        try:
            status = self._follow()
            for fd in (self._out, self._err):
                self._read(fd)
            if self._ended is None:
                # A short program has ended before it was heard to begin.
                self._listen()
        finally:
            self._close()
        if not self._has_begun and self._ended is None:
            raise SandboxError(f"the program did not begin: {_text(self._streams[self._err])}")
        code = os.waitstatus_to_exitcode(status)
        ended = self._ended or (Ended.EXIT if code >= 0 else Ended.KILLED)
        out, err = (_text(self._streams[fd]) for fd in (self._out, self._err))
        return Outcome(ended=ended, code=code, stdout=out, stderr=err, claims=tuple(self._claims))

    def _follow(self) -> int:
        """Read, answer and watch the clock until the program has ended; its wait status."""
        poll = select.poll()
        open_fds = {self._out, self._err, self._channel.fileno()}
        for fd in (*open_fds, self._slot.control.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            left = self._deadline - time.monotonic()
            events = dict(poll.poll(max(0.0, left) * 1000))
            if self._slot.control.fileno() in events:
                return self._status()
            for fd in open_fds & events.keys():
                done = self._talk(events[fd], poll) if fd == self._channel.fileno() else self._read(fd)
                if done:
                    open_fds.discard(fd)
                    poll.unregister(fd)
            if not events and time.monotonic() >= self._deadline:
                self._late()

    def _status(self) -> int:
        try:
            said = self._slot.control.recv(4096)
        except ConnectionResetError:
            said = b""
        if not said:
            raise SandboxError(f"the sandbox died while a program ran: {self._slot.last_words()}")
        return json.loads(said)["status"]

    def _late(self) -> None:
        if self._ended is not None:
            raise SandboxError(f"a program that was killed is still there after {START_S:.0f} s")
        if not self._has_begun:
            raise SandboxError(f"a program did not begin within {START_S:.0f} s")
        self._kill(Ended.TIMEOUT)

    def _kill(self, why: Ended) -> None:
        if self._ended is None:
            self._ended = why
            self._deadline = time.monotonic() + START_S
            # Where nobody listens any more, the status says so.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._slot.control.send(b'{"do": "kill"}')

    def _read(self, fd: int) -> bool:
        """Whatever is there; True at its end."""
        limit = STDERR_BYTES if fd == self._err else self._limits.output_bytes
        held = self._streams[fd]
        for _ in range(64):
            try:
                more = os.read(fd, 65536)
            except BlockingIOError:
                return False
            if not more:
                return True
            held += more[: max(0, limit - len(held))]
            if fd == self._out and len(more) > 0 and len(held) >= limit:
                self._kill(Ended.OUTPUT)
                return True
        return False

    def _talk(self, event: int, poll: select.poll) -> bool:
        if event & select.POLLOUT:
            self._send()
        done = bool(event & ~select.POLLOUT) and self._listen()
        if not done:
            poll.modify(self._channel.fileno(), select.POLLIN | (select.POLLOUT if self._unsent else 0))
        return done

    def _send(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._unsent = self._unsent[self._channel.send(self._unsent) :]

    def _listen(self) -> bool:
        """Take what came over the channel; True when nothing more is wanted from it."""
        try:
            more = self._channel.recv(65536)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        if more and not self._has_begun:
            self._has_begun = more[:1] == READY
            more = more[1:]
            self._next_question()
        elif not more:
            return True
        self._heard += more
        if len(self._heard) > self._limits.output_bytes or (more and not self._asks):
            self._kill(Ended.OUTPUT)
            return True
        return b"\n" in more and self._take_claim()

    def _take_claim(self) -> bool:
        line, _, rest = bytes(self._heard).partition(b"\n")
        nonce, _, text = line.decode("utf-8", "replace").partition(" ")
        # Whoever speaks before being asked, or without the nonce of this question, is not heard any further.
        if rest or nonce != self._nonce:
            self._kill(Ended.OUTPUT)
            return True
        self._heard.clear()
        self._claims.append(_claim(text))
        self._next_question()
        return False

    def _next_question(self) -> None:
        self._deadline = time.monotonic() + self._limits.timeout_s
        if not self._asks:
            return
        if not self._questions:
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
            return
        self._nonce = secrets.token_hex(16)
        self._unsent = json.dumps({**self._questions.pop(0), "nonce": self._nonce}).encode() + b"\n"
        self._send()


def _claim(text: str) -> Claim:
    try:
        said = json.loads(text)
        if set(said) == {"value"}:
            return Claim(value=values.read(json.dumps(said["value"])), error="")
        return Claim(value=None, error=str(said["error"])[:300] or "no value")
    except (ValueError, KeyError, TypeError, RecursionError):
        return Claim(value=None, error="what came back is no value")


def _sealed(text: str) -> int:
    """A file in memory that nobody can change any more."""
    fd = os.memfd_create("", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    data = text.encode("utf-8", "surrogatepass")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE | F_SEAL_SEAL)
    return fd


def _text(data: bytearray) -> str:
    return bytes(data).decode("utf-8", "replace")


def layers() -> tuple[Layer, ...]:
    """What this machine gives, by building the walls once."""
    with Sandbox(limits=Limits(), slots=1, allow_missing=REQUIRED) as sandbox:
        return sandbox.layers
