"""Sums of two whole numbers: the task that a tiny policy learns in minutes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from engine.data.base import Conversation, Question, Split
from workers.records import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Every pair of numbers up to `largest`, some of them held out."""

    largest: int = 99
    """Both numbers go from 0 to this one."""
    held_out: int = 400
    """Pairs that are never trained on, chosen by `seed`."""
    seed: int = 0

    def __post_init__(self) -> None:
        pairs = (self.largest + 1) ** 2
        if self.largest < 1:
            raise ValueError(f"largest is {self.largest}: it must be 1 or more")
        if not 0 <= self.held_out < pairs:
            raise ValueError(f"held_out is {self.held_out} of {pairs} pairs: some must be left to train on")

    def pairs(self, split: Split) -> list[tuple[int, int]]:
        """The pairs of a split, in order."""
        count = self.largest + 1
        held_out = set(random.Random(self.seed).sample(range(count * count), self.held_out))
        wanted = split is Split.HELD_OUT
        return [divmod(index, count) for index in range(count * count) if (index in held_out) == wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticData(Sums):
    """Asks for sums; the offline algorithms imitate the true ones."""

    def questions(self, split: Split) -> Sequence[Question]:
        return [
            Question(id=_id(a, b), messages=(_ask(a, b),), answer=str(a + b), row={"a": a, "b": b})
            for a, b in self.pairs(split)
        ]

    def conversations(self, split: Split) -> Sequence[Conversation]:
        return [_answered(a, b, answer=a + b, copy=0) for a, b in self.pairs(split)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticDemos(Sums):
    """Answered sums, most of them wrong by a little.

    Who imitates them can add, and mostly says something else: a base model that reinforcement learning can improve.
    """

    near_miss_share: float = 0.6
    """Of the training answers, how many are wrong. Held-out answers are all true."""
    near_misses: tuple[int, ...] = (-10, -1, 1, 10)
    """By how much a wrong answer is off; one of these, never to below 0."""
    copies: int = 1
    """How often each training pair is answered, every time anew: one wrong answer could be learned by heart."""

    def __post_init__(self) -> None:
        Sums.__post_init__(self)
        if not 0 <= self.near_miss_share <= 1:
            raise ValueError(f"near_miss_share is {self.near_miss_share}: a share is between 0 and 1")
        if not any(offset > 0 for offset in self.near_misses) or 0 in self.near_misses:
            raise ValueError(f"near_misses are {self.near_misses}: one must be above 0, for 0+0, and none may be 0")
        if self.copies < 1:
            raise ValueError(f"copies is {self.copies}: it must be 1 or more")

    def conversations(self, split: Split) -> Sequence[Conversation]:
        if split is Split.HELD_OUT:
            return [_answered(a, b, answer=a + b, copy=0) for a, b in self.pairs(split)]
        return [
            _answered(a, b, answer=self._answer(a, b, copy), copy=copy)
            for copy in range(self.copies)
            for a, b in self.pairs(split)
        ]

    def _answer(self, a: int, b: int, copy: int) -> int:
        # Keyed by the pair and the copy, so that no other setting moves it.
        chance = random.Random(f"{self.seed}/{a}/{b}/{copy}")
        true = a + b
        if chance.random() >= self.near_miss_share:
            return true
        return chance.choice([true + offset for offset in self.near_misses if true + offset >= 0])


def _answered(a: int, b: int, *, answer: int, copy: int) -> Conversation:
    suffix = f"-{copy}" if copy else ""
    messages = (_ask(a, b), Message(role="assistant", content=str(answer)))
    return Conversation(id=f"{_id(a, b)}{suffix}", messages=messages, tools=(), images=())


def _id(a: int, b: int) -> str:
    return f"arithmetic-{a}-{b}"


def _ask(a: int, b: int) -> Message:
    return Message(role="user", content=f"{a}+{b}=")
