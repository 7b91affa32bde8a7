"""What a reward says about one response: a score, or why there is none. A failure is never a zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar


class FailureKind(Enum):
    """Why a response has no score."""

    UNSCORABLE = "unscorable"
    """The reward returned None: it cannot judge this response."""
    NOT_FINITE = "not_finite"
    """The reward returned NaN or an infinity."""
    EXCEPTION = "exception"
    """The reward raised."""
    TIMEOUT = "timeout"
    """The reward did not answer in time; its process was killed."""
    CRASH = "crash"
    """The process that ran the reward died."""
    MISSHAPED = "misshaped"
    """The reward returned something that is no score, or not one for each response."""
    UNREADABLE = "unreadable"
    """A judge model's reply holds no verdict."""
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


def judgement_of(value: float | Mapping[str, float] | None, *, name: str) -> Judgement:
    """What a reward function returned, as a record.

    `value` may be a number, a mapping of named parts (their sum trains, unless one is called `total`), or None.

    >>> judgement_of(1, name="correct")
    Score(total=1.0, parts={'correct': 1.0})
    >>> judgement_of({"correct": 1.0, "format": 0.25}, name="math").total
    1.25
    >>> judgement_of(None, name="correct").kind
    <FailureKind.UNSCORABLE: 'unscorable'>
    """
    if value is None:
        return Failure(kind=FailureKind.UNSCORABLE, reason=f"{name} returned None")
    if isinstance(value, Mapping):
        parts = {str(key): float(part) for key, part in value.items() if key != "total"}
        total = float(value["total"]) if "total" in value else sum(parts.values())
        parts = parts or {name: total}
    else:
        total = float(value)
        parts = {name: total}
    if not all(math.isfinite(number) for number in (total, *parts.values())):
        return Failure(kind=FailureKind.NOT_FINITE, reason=f"{name} returned {value!r}")
    return Score(total=total, parts=parts)
