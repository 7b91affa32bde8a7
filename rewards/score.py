"""What a reward says about one response: a score, or why there is none. A failure is never a zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Complex, Real
from typing import TypeVar

LARGEST = 1e15
"""Of a score: its square, summed over a batch's tokens, still fits into the float32 that training calculates in."""
MOST_SHOWN = 200
"""Characters of a value that is no score."""


class FailureKind(Enum):
    """Why a response has no score."""

    UNSCORABLE = "unscorable"
    """The reward returned None: it cannot judge this response."""
    NOT_FINITE = "not_finite"
    """The reward returned NaN, an infinity, or a number that would become one in training."""
    EXCEPTION = "exception"
    """The reward raised."""
    TIMEOUT = "timeout"
    """The reward did not answer in time; its process was killed."""
    CRASH = "crash"
    """The process that ran the reward died."""
    MISSHAPED = "misshaped"
    """The reward returned something that is no score, or not one for each response."""
    UNREADABLE = "unreadable"
    """A judge model's reply holds no verdict; or a reference answer is none that its function can read."""
    UNAVAILABLE = "unavailable"
    """A service that the reward asks did not answer, however often it was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One response, judged.

    Example:
        Score(total=1.1, parts={"correct": 1.0, "format": 0.1})
    """

    total: float
    """What trains."""
    parts: Mapping[str, float]
    """What is logged, by name; never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One response that could not be judged: left out of training and of its group's baseline, counted by kind.

    Example:
        Failure(kind=FailureKind.TIMEOUT, reason="no answer within 10 s")
    """

    kind: FailureKind
    reason: str
    """For people: the exception's traceback, the limit that was passed."""


Judgement = Score | Failure


class CannotJudge(Exception):
    """What a reward raises to say why it has no score, in place of a traceback."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.failure = Failure(kind=kind, reason=reason)


RewardFunction = Callable[..., float | Mapping[str, float] | None]
"""`def correct(response: str, answer: str, **row)`, called with keywords; `judgement_of` reads what it returns."""

KEEPS_NOTHING = "keeps_nothing"

Function = TypeVar("Function", bound=Callable[..., object])


def keeps_nothing(function: Function) -> Function:
    """Declares that no call of `function` leaves anything for the next: all are made in one process, which is faster.

    A function that leaves nothing behind changes no global, no argument, and not the process it runs in.
    """
    setattr(function, KEEPS_NOTHING, True)
    return function


ANSWER_CHECK = "answer_check"


def answers_checked_by(check: Callable[[str], str | None]) -> Callable[[Function], Function]:
    """Declares how `function`'s reference answers are checked before a run: `check` says what is wrong with one.

    Rows whose answer no response could match are named as bad rows rather than judged as failures.
    """

    def declare(function: Function) -> Function:
        setattr(function, ANSWER_CHECK, check)
        return function

    return declare


def judgement_of(value: object, *, name: str) -> Judgement:
    """What a reward function returned, as a record.

    `value` may be a number of any library, a mapping of named parts (their sum trains, unless one is called `total`),
    or None; a part that is None makes all of it None. Anything else is misshaped, also what only looks like a number
    (`"1.0"`, a list of one), and a mapping that holds such a thing, or nothing: read with good will it would be a score
    that its author did not mean.

    >>> judgement_of(1, name="correct")
    Score(total=1.0, parts={'correct': 1.0})
    >>> judgement_of({"correct": 1.0, "format": 0.25}, name="math").total
    1.25
    >>> judgement_of(None, name="correct").kind
    <FailureKind.UNSCORABLE: 'unscorable'>
    >>> judgement_of({"correct": "yes"}, name="correct").reason
    "correct returned a part 'correct' that is no number but a str: 'yes'"
    """
    if value is None:
        return Failure(kind=FailureKind.UNSCORABLE, reason=f"{name} returned None")
    try:
        if not isinstance(value, Mapping):
            total = _number(value, "something")
            parts = {name: total}
        elif not value:
            raise CannotJudge(FailureKind.MISSHAPED, "a mapping without parts")
        else:
            numbers = {str(key): _number(part, f"a part {key!r}") for key, part in value.items()}
            parts = {key: number for key, number in numbers.items() if key != "total"}
            total = numbers.get("total", sum(parts.values()))
            parts = parts or {name: total}
        if abs(total) > LARGEST:
            raise CannotJudge(FailureKind.NOT_FINITE, f"parts whose sum is {total}: {clipped(value)}")
    except CannotJudge as wrong:
        return Failure(kind=wrong.failure.kind, reason=f"{name} returned {wrong}")
    return Score(total=total, parts=parts)


def _number(value: object, what: str) -> float:
    """One that can be calculated with. Raises CannotJudge for anything else."""
    if value is None:
        raise CannotJudge(FailureKind.UNSCORABLE, f"{what} that is None")
    if not _is_number(value):
        kind = type(value).__name__
        if isinstance(value, Coroutine):
            value.close()  # or Python complains that nobody waited for it
        raise CannotJudge(FailureKind.MISSHAPED, f"{what} that is no number but a {kind}: {clipped(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer that no float holds
        number = math.inf
    if not math.isfinite(number):
        raise CannotJudge(FailureKind.NOT_FINITE, f"{what} that is not finite: {clipped(value)}")
    if abs(number) > LARGEST:
        raise CannotJudge(FailureKind.NOT_FINITE, f"{what} beyond {LARGEST:g}: {clipped(value)}")
    return number


def _is_number(value: object) -> bool:
    """Python's own and `Decimal`; an array or tensor without dimensions, of real numbers; whatever has `__float__`."""
    if isinstance(value, float | int):
        return True
    if isinstance(value, Complex) and not isinstance(value, Real):
        return False
    held = str(getattr(value, "dtype", "float"))
    is_real = any(kind in held for kind in ("float", "int", "bool"))
    return is_real and not getattr(value, "shape", ()) and hasattr(type(value), "__float__")


def clipped(value: object) -> str:
    """For people, of a value that somebody's code made."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write very large ones
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
