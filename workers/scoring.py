"""Runs rewards in a process that can be killed, so that no response can stop the others from being judged.

A response that hangs, crashes or raises costs its own score and nothing else: its process is replaced and the rest of
the batch goes on. What could not be judged is a `Failure` of some kind, never a zero.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.item import Item
from rewards.score import LARGEST, Failure, FailureKind, Judgement, Score
from rewards.spec import Convention, Isolation, Spec
from workers.scoring_child import MAX_ANSWER_BYTES, Limits, Start, encode_call
from workers.scoring_link import START_LIMIT_S, Child, ChildGone

BACKSTOP_S = 5.0
"""Beyond a call's time, before a process that should have ended it is killed itself: a call may have stopped it."""
MAX_CRASHES_IN_A_ROW = 32
"""Of the process, without one answer in between: then the reward is broken, not the responses."""
OF_THE_CALL = (FailureKind.EXCEPTION, FailureKind.CRASH, FailureKind.TIMEOUT, FailureKind.MISSHAPED)
"""What one bad response may do to a call that judges several."""

Call = tuple[Item, ...]
Answer = tuple[Judgement, ...] | Failure
"""One judgement an item of the call; or what was wrong with all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Function:
    """What the process says of a function.

    Example:
        _Function(convention=Convention.NATIVE, isolation=Isolation.SAMPLE, together=False,
                  place="/home/me/my/reward.py:12")
    """

    convention: Convention
    isolation: Isolation
    together: bool
    place: str


class RewardProcess:
    """The functions that judge a run, behind a process boundary. One caller at a time.

    Functions under `Isolation.SAMPLE` and under `Isolation.WORKER` are called in two processes, so that what the latter
    leave behind reaches none of the former; the second is started when it is first needed. Start and use it on a thread
    that lives as long as it does: the kernel ties the child's life to that thread.
    """

    def __init__(self, specs: Sequence[Spec], limits: Limits) -> None:
        """Raises RewardError where a function cannot be used as configured."""
        self._specs = tuple(specs)
        self._limits = limits
        self._crashes_in_a_row = 0
        self._closed = False
        self._children: dict[Isolation, Child] = {}
        self._functions: tuple[_Function, ...] = ()
        self._begin(Isolation.AUTO)
        first = self._functions[0].isolation
        self._children[first] = self._children.pop(Isolation.AUTO)
        self._started = {first}
        """Kinds of processes that were needed so far."""

    def judge(self, function: int, items: Sequence[Item]) -> tuple[Judgement, ...]:
        """One judgement an item, in order, by one of the functions. Each call has `timeout_s` from when it is begun.

        A function that judges all responses to a prompt together is called once, with one limit. Where that call as a
        whole fails, each item is asked about again, alone, so that one bad response costs its own score only.
        """
        try:
            if self._functions[function].together and len(items) > 1:
                [answer] = self._answers(function, [tuple(items)])
                if not _failed(answer):
                    said = (answer,) * len(items) if isinstance(answer, Failure) else answer
                    return self._told(function, items, said)
            answers = self._answers(function, [(item,) for item in items])
        except BaseException:  # an interrupted batch must not answer for the next one
            self._bury_all()
            raise
        alone = tuple(answer if isinstance(answer, Failure) else answer[0] for answer in answers)
        return self._told(function, items, alone)

    def judges_together(self, function: int) -> bool:
        """Whether one call of it judges all responses to a prompt."""
        return self._functions[function].together

    def convention(self, function: int) -> Convention:
        """How it is called: never AUTO."""
        return self._functions[function].convention

    def revive(self) -> None:
        """Start again what has died, so that the next batch need not wait for it."""
        for isolation in list(self._started):
            self._living_child(isolation)

    def close(self) -> None:
        """Kill the processes and all that the rewards started. Closing twice is fine."""
        self._closed = True
        self._bury_all()

    def interrupt(self) -> None:
        """Kill them under a call, from another thread; the caller is told that the process is closed."""
        self._closed = True
        for child in list(self._children.values()):
            child.interrupt()

    def _answers(self, function: int, calls: Sequence[Call]) -> list[Answer]:
        answers: list[Answer] = []
        encoded = [encode_call(call) for call in calls]
        while len(answers) < len(calls):
            rest = slice(len(answers), None)
            self._answer_until_death(function, calls[rest], encoded[rest], answers)
        return answers

    def _answer_until_death(
        self, function: int, calls: Sequence[Call], encoded: Sequence[bytes], answers: list[Answer]
    ) -> None:
        """Append the answers to `calls`; when the process dies, a failure of the call it was on is the last."""
        started, isolation = False, self._functions[function].isolation
        limit_s = self._limits.timeout_s + (BACKSTOP_S if isolation is Isolation.SAMPLE else 0.0)
        child = self._living_child(isolation)
        try:
            child.send(pickle.dumps((function, encoded)))
            child.receive(START_LIMIT_S, MAX_ANSWER_BYTES)
            started = True
            for call in calls:
                answers.append(_answer(child, len(call), limit_s))
                self._crashes_in_a_row = 0
        except ChildGone as gone:
            self._children.pop(isolation).kill()
            self._refuse_closed()
            self._refuse_broken(function, gone)
            if started:
                answers.append(gone.failure)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ValueError(f"the process of reward {', '.join(spec.source.spec for spec in self._specs)} is closed")

    def _refuse_broken(self, function: int, gone: ChildGone) -> None:
        """A process that always dies by itself would be started for ever. That it hangs is a response's doing."""
        self._crashes_in_a_row += gone.failure.kind is FailureKind.CRASH
        if self._crashes_in_a_row >= MAX_CRASHES_IN_A_ROW:
            raise RuntimeError(
                f"reward {self._specs[function].source.spec}: its process died {self._crashes_in_a_row} times in a row "
                f"without judging one response; the last time: {gone.failure.reason}. "
                "Try the reward on a few responses by hand"
            ) from gone

    def _told(self, function: int, items: Sequence[Item], judgements: Sequence[Judgement]) -> tuple[Judgement, ...]:
        """Failures say of which function and of which response."""
        name, place = self._specs[function].name, self._functions[function].place
        return tuple(
            Failure(kind=judgement.kind, reason=f"{name} ({place}), response {item.id}: {judgement.reason}")
            if isinstance(judgement, Failure)
            else judgement
            for item, judgement in zip(items, judgements, strict=True)
        )

    def _living_child(self, isolation: Isolation) -> Child:
        self._refuse_closed()
        child = self._children.get(isolation)
        if child is None or child.is_dead():
            if child is not None:
                self._children.pop(isolation).kill()
            self._begin(isolation)
            self._started.add(isolation)
        return self._children[isolation]

    def _begin(self, isolation: Isolation) -> None:
        import_path = tuple(os.path.abspath(entry) for entry in sys.path)
        child = self._children[isolation] = Child()  # known before it imports, which may hang, so that it can be killed
        try:
            self._refuse_closed()  # meanwhile, by another thread that did not see this child
            described = child.begin(Start(specs=self._specs, limits=self._limits, import_path=import_path))
        except BaseException:
            self._children.pop(isolation).kill()
            raise
        self._functions = tuple(
            _Function(
                convention=Convention(one["convention"]),
                isolation=Isolation(one["isolation"]),
                together=bool(one["together"]),
                place=str(one["place"]),
            )
            for one in described
        )

    def _bury_all(self) -> None:
        while self._children:
            self._children.popitem()[1].kill()


def _failed(answer: Answer) -> bool:
    """Whether a call of several came to nothing, for a reason that may lie in one of them."""
    if isinstance(answer, Failure):
        return answer.kind in OF_THE_CALL
    return all(isinstance(judgement, Failure) and judgement.kind in OF_THE_CALL for judgement in answer)


def _answer(child: Child, items: int, limit_s: float) -> Answer:
    """The next message as records, made here from plain numbers and text: nothing of the child is trusted."""
    message = child.receive(limit_s, MAX_ANSWER_BYTES * items + MAX_ANSWER_BYTES)
    try:
        if message["say"] == "failed":
            return _judgement(message)
        answer = tuple(_judgement(one) for one in message["judgements"])
        if len(answer) != items:
            raise ValueError
        return answer
    except (KeyError, TypeError, ValueError, AttributeError):
        raise child.crashed() from None


def _judgement(said: dict[str, object]) -> Judgement:
    if "kind" in said:
        return Failure(kind=FailureKind(said["kind"]), reason=str(said["reason"]))
    total, parts = float(said["total"]), {str(name): float(part) for name, part in said["parts"].items()}
    if not all(abs(number) <= LARGEST for number in (total, *parts.values())):  # which no NaN is
        raise ValueError
    return Score(total=total, parts=parts)
