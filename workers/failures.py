"""What a person is told when a worker fails or is late: who, what it was to do, why, what its own log says, and what
everybody was doing."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from workers.stacks import begin_anew_if_large, stacks_of
from workers.stopped import RunStopped, WorkerDied

LOG_TAIL_LINES = 15
LONGEST_LOG_LINE = 200
INNERMOST_FRAMES, MOST_THREADS = 4, 3
OWN_CODE, LIBRARIES = str(Path(__file__).resolve().parents[1]), "site-packages"
LOOK_ROUND_EVERY_S = 1.0
"""Whether a worker that nobody waits for is still there."""
MOST_LOGS = 3
"""Logs that one message quotes, when many workers are late."""
ACTOR_ID = re.compile(r"actor_id[=:] ?([0-9a-f]{32})")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
RAY_MARKS = (":actor_name:", ":job_id:", ":task_name:")
"""Lines that Ray writes into a worker's output for its own log reader."""
RAY_ADVICE = " If the process was killed by the kernel OOM killer"
"""From here on Ray's reason for a death is advice on cluster options."""
RAY_TOLD = "Exception raised in creation task:"
"""From here on Ray repeats a constructor's traceback, which the message has."""
CARETS = re.compile(r"[\s^~]+")


class WorkerFailed(RunStopped):
    """A worker could not be made: its constructor raised."""


class WorkerTimeout(RunStopped):
    """A worker did not answer in time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wait:
    """Calls that the run waits for."""

    refs: tuple[ObjectRef, ...]
    role: str
    verb: str
    began_s: float


class Roster:
    """Who is who among a run's actors, so that a failure names the worker that it came from and quotes its log.

    That worker need not be the one that was called: scoring a group fails when its rollout engine is dead.
    """

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._names: dict[str, str] = {}
        """By actor id."""
        self._waits: list[Wait] = []
        self._signs: dict[ObjectRef, ActorHandle] = {}
        """An empty call to each worker that nobody replaces: it fails when the worker dies, busy or idle."""

    @contextmanager
    def waiting(self, refs: Sequence[ObjectRef], *, role: str, verb: str, limit_s: float) -> Iterator[Iterator[float]]:
        """A block that waits for these calls, for whoever asks meanwhile what the run waits for.

        It is given seconds to wait for, as often as it asks for the next. Asking raises WorkerTimeout when `limit_s` is
        over, and WorkerDied where a worker is gone that nobody replaces: whoever is waited for may never need it.
        """
        wait = Wait(refs=tuple(refs), role=role, verb=verb, began_s=time.monotonic())
        self._waits.append(wait)
        try:
            yield self._slices_s(wait, limit_s)
        finally:
            self._waits.remove(wait)

    def _slices_s(self, wait: Wait, limit_s: float) -> Iterator[float]:
        ends_s = wait.began_s + limit_s
        yield min(LOOK_ROUND_EVERY_S, limit_s)
        while (left_s := ends_s - time.monotonic()) > 0:
            self._look_round(wait)
            yield min(LOOK_ROUND_EVERY_S, left_s)
        _, late = ray.wait(list(wait.refs), num_returns=len(wait.refs), timeout=0, fetch_local=False)
        raise self.late(late, role=wait.role, verb=wait.verb, limit_s=limit_s)

    def _look_round(self, wait: Wait) -> None:
        if not self._signs:
            return
        given, _ = ray.wait(list(self._signs), num_returns=len(self._signs), timeout=0, fetch_local=False)
        for sign in given:
            actor = self._signs.pop(sign)
            try:
                ray.get(sign)
            except RayActorError as error:
                raise self.died(error, [sign], role=wait.role, verb=wait.verb) from None
            self.watch(actor)

    def beside(self) -> Roster:
        """The same people, for waits on a thread beside the run's: of deaths it is told by its own calls alone, and the
        run is still to see them."""
        other = copy.copy(self)
        other._signs = {}
        return other

    def watch(self, actor: ActorHandle) -> None:
        """From now on a wait for whoever it may be ends when this worker dies."""
        self._signs[actor.__ray_ready__.remote()] = actor

    def report(self) -> list[str]:
        """Who waits for whom since when, and what everybody is doing: a few lines, and a file for the rest."""
        lines = []
        for wait in list(self._waits):
            _, late = ray.wait(list(wait.refs), num_returns=len(wait.refs), timeout=0, fetch_local=False)
            names = ", ".join(sorted({self._called(ref) for ref in late})) or "nobody any more"
            lines.append(
                f"the run waits for {names}, since {time.monotonic() - wait.began_s:.1f} s: the {wait.role} group is "
                f"to {wait.verb}"
            )
        return [*(lines or ["the run waits for no worker"]), *self._stacks(sorted(self._names.values()))]

    def _stacks(self, named: Sequence[str]) -> list[str]:
        """Where these workers are in their code, in lines; everybody's whole stacks go to a file."""
        told = stacks_of({name: self.log_path(name) for name in self._names.values()})
        path = self._log_folder / "stacks.txt"
        with path.open("a") as file:
            begin_anew_if_large(path)
            for name, stacks in told.items():
                file.write(f"=== {name}, {time.strftime('%F %T')}\n{stacks or '(no answer)'}\n")
        lines = []
        for name in named:
            stacks = told.get(name, "")
            frames = _innermost(stacks) or ["(nothing of the run's own)" if stacks else "(it does not answer)"]
            lines += [f"--- {name} is in:", *(f"    {frame}" for frame in frames)]
        return [*lines, f"(everybody's whole stacks are in {path})"]

    def enlist(self, name: str, actor: ActorHandle) -> None:
        self._names[actor._actor_id.hex()] = name

    def log_path(self, name: str) -> Path:
        """Where the worker's own output goes."""
        return self._log_folder / f"{name.replace(' ', '_')}.log"

    def raised(self, error: RayTaskError, refs: Sequence[ObjectRef], *, role: str, verb: str) -> Exception:
        """The worker's own error, with a note that says whose it is, where it was raised, and what the log says."""
        name = self._culprit(error, refs)
        told = [f"raised by {name} while {_doing(name, role, verb)}"]
        if not isinstance(error.cause, RunStopped):  # whose message says it all
            told.append(_traceback(error))
        error.cause.add_note("\n".join([*told, *self._log_tail(name)]))
        return error.cause

    def died(self, error: RayActorError, refs: Sequence[ObjectRef], *, role: str, verb: str) -> RunStopped:
        """For a worker whose constructor raised, and for one whose process is gone. It is told once."""
        name = self._culprit(error, refs)
        self._signs = {sign: actor for sign, actor in self._signs.items() if self._called(sign) != name}
        if error.actor_init_failed:
            lines = _traceback(error).splitlines()
            told = [f"{name} failed while {_doing(name, role, verb)}: {lines[-1]}", *lines[1:]]
            return WorkerFailed("\n".join([*told, *self._log_tail(name)]))
        reason = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")][-1]
        reason = reason.partition(RAY_ADVICE)[0]
        return WorkerDied("\n".join([f"{name} died while {_doing(name, role, verb)}: {reason}", *self._log_tail(name)]))

    def late(self, refs: Sequence[ObjectRef], *, role: str, verb: str, limit_s: float) -> WorkerTimeout:
        """`refs`: the calls that are unanswered."""
        names = sorted({self._called(ref) for ref in refs})
        tails = [line for name in names[:MOST_LOGS] for line in self._log_tail(name)]
        told = f"{', '.join(names)} did not answer within {limit_s:g} s, while the {role} group was to {verb}"
        elsewhere = f"(it may itself be waiting for another worker; every log is in {self._log_folder})"
        stacks = self._stacks(names[:MOST_LOGS])
        return WorkerTimeout("\n".join([told, *tails, *stacks, elsewhere]))

    def _culprit(self, error: Exception, refs: Sequence[ObjectRef]) -> str:
        """The innermost actor that Ray's message names: the later ones are causes of the earlier ones."""
        known = [self._names[found] for found in ACTOR_ID.findall(str(error)) if found in self._names]
        return known[-1] if known else " or ".join(sorted({self._called(ref) for ref in refs}))

    def _called(self, ref: ObjectRef) -> str:
        return self._names.get(ref.task_id().actor_id().hex(), "a worker")

    def _log_tail(self, name: str) -> list[str]:
        path = self.log_path(name)
        if not path.exists():
            return [f"--- there is no log at {path}"]
        written = path.read_text(errors="replace").partition(RAY_TOLD)[0].splitlines()
        lines = [line for line in written if line.strip() and not line.startswith(RAY_MARKS)]
        cut = [f"{line[:LONGEST_LOG_LINE]}..." if len(line) > LONGEST_LOG_LINE else line for line in lines]
        return [f"--- the last lines of {path}:", *(f"    {line}" for line in cut[-LOG_TAIL_LINES:] or ["(empty)"])]


def _innermost(stacks: str) -> list[str]:
    """The last frames of the threads that are in code of the run's, as far as Python knows; the others serve Ray, or
    wait in a library."""
    threads = [
        [line.strip() for line in thread.splitlines() if line.startswith("  File ")]
        for thread in stacks.split("hread 0x")[1:]
    ]
    own = [frames for frames in threads if any(OWN_CODE in frame and LIBRARIES not in frame for frame in frames)]
    return [frame for frames in own[:MOST_THREADS] for frame in frames[:INNERMOST_FRAMES]]


def _doing(name: str, role: str, verb: str) -> str:
    """What it was called for; the worker at fault may be of another role than the one that was called."""
    return f"it was to {verb}" if name.startswith(f"{role} ") else f"the run waited for the {role} group to {verb}"


def _traceback(error: Exception) -> str:
    """The worker's traceback as Ray tells it, without colours and without the carets of frames that Ray hides."""
    lines = COLOUR.sub("", str(error)).splitlines()
    return "\n".join(line for line in lines if line.strip() and not CARETS.fullmatch(line))
