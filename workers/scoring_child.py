"""The process that runs rewards: `python -m workers.scoring_child <requests> <answers> <parent>`.

It reads pickles that the parent wrote and answers in JSON, over two pipes of their own: what the reward prints goes to
another, and whatever it returns reaches the parent as plain numbers and text.

    parent -> child   Start, once                         child -> parent   ready | refused
    parent -> child   a batch: a function, its calls      child -> parent   started, then judged for each call
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import json
import os
import pickle
import resource
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rewards.calling import BoundCheck, BoundReward, bound
from rewards.item import Item
from rewards.load import RewardError, told
from rewards.score import CannotJudge, Failure, FailureKind, Judgement, Score
from rewards.spec import Isolation, Spec
from workers.forked_call import Zygote
from workers.processes import die_with

HEADER = struct.Struct("!Q")
"""The length of the message that follows."""
MAX_ANSWER_BYTES = 1 << 20
"""For each response of a call."""
Bound = BoundReward | BoundCheck
SPARE_BYTES = 64 << 20
"""Of memory beyond the limit, to say what went wrong with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What judging one response may take."""

    timeout_s: float
    memory_gib: float
    """0: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the child needs before the first batch."""

    specs: tuple[Spec, ...]
    limits: Limits
    import_path: tuple[str, ...]
    """Where the parent finds modules, so that the reward finds the same ones."""


def encode_call(items: Sequence[Item]) -> bytes:
    """Each call is pickled by itself, so that a reward that changes its row changes it for nobody else."""
    return pickle.dumps(tuple(items), protocol=pickle.HIGHEST_PROTOCOL)


def encode_judgement(judgement: Judgement) -> dict[str, object]:
    if isinstance(judgement, Score):
        return {"total": judgement.total, "parts": dict(judgement.parts)}
    return {"kind": judgement.kind.value, "reason": judgement.reason}


def main() -> None:
    requests, answers, parent = (int(argument) for argument in sys.argv[1:])
    die_with(parent)
    sys.stdout.reconfigure(line_buffering=True)  # what a reward prints before it hangs must reach the log
    for pipe in (requests, answers):
        # Programs that the reward starts must not hold the pipes open after this process is gone.
        os.set_inheritable(pipe, False)
    start: Start = pickle.loads(_read(requests))
    _limit_memory(start.limits)
    sys.path.extend(entry for entry in start.import_path if entry not in sys.path)
    try:
        rewards = [bound(spec) for spec in start.specs]
    except RewardError as error:
        _write(answers, {"say": "refused", "reason": str(error)})
        return
    _write(answers, {"say": "ready", "functions": [_described(reward) for reward in rewards]})
    child = _Child(rewards, start.limits, private=(requests, answers))
    this_process = os.getpid()
    while batch := _read(requests):
        number, calls = pickle.loads(batch)
        _write(answers, {"say": "started"})
        for call in calls:
            answer = child.answer(rewards[number], call)
            if os.getpid() != this_process:
                os._exit(0)  # a copy that the reward forked and let return: the original answers
            _write_bytes(answers, answer)


class _Child:
    """Makes calls: in this process, or in copies of it."""

    def __init__(self, rewards: Sequence[Bound], limits: Limits, *, private: Sequence[int]) -> None:
        self._limits, self._private = limits, private
        self._rewards = rewards

    @functools.cached_property
    def _zygote(self) -> Zygote:
        """From the first call on that needs a copy: a process that only makes calls itself is killed, never asked."""
        zygote = Zygote(self._private)
        gc.collect()
        gc.freeze()  # the collector of a copy must not touch, and so not copy, the memory of what was imported
        zygote.answer(lambda: b" ", timeout_s=self._limits.timeout_s, most_bytes=1)
        # Counted after one fork: a library that is ready for it (OpenBLAS) has ended its threads.
        threads = len(os.listdir("/proc/self/task")) - 1 if sys.platform == "linux" else 0
        if threads:
            names = ", ".join(reward.spec.source.spec for reward in self._rewards)
            print(
                f"importing {names} started {threads} threads, which the process of a call does not have: a call that "
                "waits for one of them hangs until its time is up. Start them in the call, or set isolation=worker",
                file=sys.stderr,
            )
        return zygote

    def answer(self, reward: Bound, call: bytes) -> bytes:
        """The message that says what came of it."""
        if reward.isolation is Isolation.WORKER:
            return self._judged(reward, call)
        count = len(pickle.loads(call)) if reward.judges_together else 1
        try:
            return self._zygote.answer(
                lambda: self._judged(reward, call),
                timeout_s=self._limits.timeout_s,
                most_bytes=count * MAX_ANSWER_BYTES,
            )
        except CannotJudge as reason:
            return _encode(_failed(reason.failure))

    def _judged(self, reward: Bound, call: bytes) -> bytes:
        try:
            items: tuple[Item, ...] = pickle.loads(call)
            judgements = reward.judge(items)
            if len(judgements) != len(items):
                wrong = f"{len(judgements)} judgements of {len(items)} responses"
                return _encode(_failed(Failure(kind=FailureKind.MISSHAPED, reason=wrong)))
            message = _encode({"say": "judged", "judgements": [encode_judgement(one) for one in judgements]})
        except CannotJudge as reason:
            return _encode(_failed(reason.failure))
        except MemoryError as error:
            with _spare_memory(self._limits):
                hint = f"a call may take {self._limits.memory_gib:g} GiB (reward.memory_gib)"
                return _encode(_failed(Failure(kind=FailureKind.EXCEPTION, reason=f"{told(error)}\n{hint}")))
        except BaseException as error:  # the user's own code: even SystemExit says something about this call alone
            return _encode(_failed(Failure(kind=FailureKind.EXCEPTION, reason=told(error))))
        if len(message) > MAX_ANSWER_BYTES * len(items):
            wrong = f"the answer takes {len(message)} bytes, more than {MAX_ANSWER_BYTES}; return fewer parts"
            return _encode(_failed(Failure(kind=FailureKind.MISSHAPED, reason=wrong)))
        return message


def _described(reward: Bound) -> dict[str, object]:
    """What the parent must know of a function that it cannot import itself."""
    place = reward.spec.source.spec
    with contextlib.suppress(TypeError, OSError):  # of a callable object, or a function without a source
        function = inspect.unwrap(reward.function)
        place = f"{inspect.getfile(function)}:{function.__code__.co_firstlineno}"
    return {
        "convention": reward.convention.value,
        "isolation": reward.isolation.value,
        "together": reward.judges_together,
        "place": place,
    }


def _limit_memory(limits: Limits) -> None:
    """Of data, which is what is filled: address space (RLIMIT_AS) is reserved by the TiB, and never used, by CUDA, by
    memory allocators and for thread stacks. The copies of this process inherit it, each for itself."""
    if limits.memory_gib:
        most = int(limits.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most + SPARE_BYTES))


@contextlib.contextmanager
def _spare_memory(limits: Limits) -> Iterator[None]:
    most, with_spare = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (with_spare, with_spare))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (most, with_spare))


def _failed(failure: Failure) -> dict[str, object]:
    """Of a call as a whole."""
    return {"say": "failed", "kind": failure.kind.value, "reason": failure.reason}


def _read(pipe: int) -> bytes:
    """One message; empty when the parent closed the pipe."""
    header = _read_exactly(pipe, HEADER.size)
    return _read_exactly(pipe, HEADER.unpack(header)[0]) if header else b""


def _read_exactly(pipe: int, size: int) -> bytes:
    chunks = bytearray()
    while len(chunks) < size:
        chunk = os.read(pipe, min(size - len(chunks), 1 << 20))
        if not chunk:
            return b""
        chunks += chunk
    return bytes(chunks)


def _encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message).encode()


def _write(pipe: int, message: Mapping[str, object]) -> None:
    _write_bytes(pipe, _encode(message))


def _write_bytes(pipe: int, data: bytes) -> None:
    data = HEADER.pack(len(data)) + data
    while data:
        data = data[os.write(pipe, data) :]


if __name__ == "__main__":
    main()
