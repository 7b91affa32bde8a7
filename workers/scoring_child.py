"""The process that runs a reward: `python -m workers.scoring_child <requests> <answers> <parent>`.

It reads pickles that the parent wrote and answers in JSON, over two pipes of their own: whatever the reward prints goes
where the parent's errors go, and whatever it returns reaches the parent as plain numbers and text.

    parent -> child   Start, once                         child -> parent   ready | refused
    parent -> child   a batch: a tuple of pickled items   child -> parent   started, then score | failure for each
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from rewards.calling import BoundReward
from rewards.item import Item
from rewards.load import RewardError, told
from rewards.score import CannotJudge, Failure, FailureKind, Judgement, Score
from rewards.spec import RewardSpec

HEADER = struct.Struct("!Q")
"""The length of the message that follows."""
MAX_ANSWER_BYTES = 1 << 20
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What judging one response may take."""

    timeout_s: float
    memory_gib: float
    """0: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the child needs before the first batch."""

    specs: tuple[RewardSpec, ...]
    limits: Limits
    import_path: tuple[str, ...]
    """Where the parent finds modules, so that the reward finds the same ones."""


def encode_item(item: Item) -> bytes:
    """Each response is pickled by itself, so that a reward that changes its row changes it for nobody else."""
    return pickle.dumps(item)


def encode_judgement(judgement: Judgement) -> dict[str, object]:
    if isinstance(judgement, Score):
        return {"say": "score", "total": judgement.total, "parts": dict(judgement.parts)}
    return {"say": "failure", "kind": judgement.kind.value, "reason": judgement.reason}


def main() -> None:
    requests, answers, parent = (int(argument) for argument in sys.argv[1:])
    _die_with(parent)
    sys.stdout.reconfigure(line_buffering=True)  # what a reward prints before it hangs must reach the log
    for pipe in (requests, answers):
        # Programs that the reward starts must not hold the pipes open after this process is gone.
        os.set_inheritable(pipe, False)
    start: Start = pickle.loads(_read(requests))
    sys.path.extend(entry for entry in start.import_path if entry not in sys.path)
    try:
        rewards = [BoundReward(spec) for spec in start.specs]
    except RewardError as error:
        _write(answers, {"say": "refused", "reason": str(error)})
        return
    _write(answers, {"say": "ready"})
    this_process = os.getpid()
    while batch := _read(requests):
        function, items = pickle.loads(batch)
        _write(answers, {"say": "started"})
        for item in items:
            judgement = _judge(rewards[function], item)
            if os.getpid() != this_process:
                os._exit(0)  # a copy that the reward forked and let return: the original answers
            _write(answers, encode_judgement(judgement))


def _judge(reward: BoundReward, item: bytes) -> Judgement:
    try:
        [judgement] = reward.judge([pickle.loads(item)])
        return judgement
    except CannotJudge as reason:
        return reason.failure
    except BaseException as error:  # the user's own code: even SystemExit says something about this response alone
        return Failure(kind=FailureKind.EXCEPTION, reason=told(error))


def _die_with(parent: int) -> None:
    """The kernel kills this process when the thread that started it ends, also while it hangs in the reward."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died first


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


def _write(pipe: int, message: Mapping[str, object]) -> None:
    data = json.dumps(message).encode()
    if len(data) > MAX_ANSWER_BYTES:
        reason = f"the reward's answer takes {len(data)} bytes, more than {MAX_ANSWER_BYTES}; return fewer parts"
        data = json.dumps(encode_judgement(Failure(kind=FailureKind.EXCEPTION, reason=reason))).encode()
    data = HEADER.pack(len(data)) + data
    while data:
        data = data[os.write(pipe, data) :]


if __name__ == "__main__":
    main()
