"""Sums of two whole numbers: the task that a tiny policy learns in minutes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from engine.data.base import Conversation, Document, Judged, Preference, Question, Split
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
    """Asks for sums; the offline algorithms read or imitate the true ones, or are told them from near misses."""

    near_misses: tuple[int, ...] = (-10, -1, 1, 10)
    """By how much a rejected or disapproved answer is off; one of these, never to below 0."""
    mislabelled_share: float = 0.0
    """Of the training preferences and judgements, how many are the wrong way round. With half of them nothing can be
    learned: a control. Held-out ones are all right."""

    def __post_init__(self) -> None:
        Sums.__post_init__(self)
        _check_near_misses(self.near_misses)
        _check_share("mislabelled_share", self.mislabelled_share)

    def questions(self, split: Split) -> Sequence[Question]:
        return [
            Question(id=_id(a, b), messages=(_ask(a, b),), answer=str(a + b), row={"a": a, "b": b}, from_text=True)
            for a, b in self.pairs(split)
        ]

    def conversations(self, split: Split) -> Sequence[Conversation]:
        return [_answered(a, b, answer=a + b, copy=0) for a, b in self.pairs(split)]

    def documents(self, split: Split) -> Sequence[Document]:
        return [Document(id=_id(a, b), text=f"{a}+{b}={a + b}") for a, b in self.pairs(split)]

    def preferences(self, split: Split) -> Sequence[Preference]:
        """The true sum before a near miss."""
        return [self._preference(a, b, split) for a, b in self.pairs(split)]

    def judged(self, split: Split) -> Sequence[Judged]:
        """The true sum, approved of, or a near miss, disapproved of: one of them by chance."""
        return [self._judged(a, b, split) for a, b in self.pairs(split)]

    def _preference(self, a: int, b: int, split: Split) -> Preference:
        chance = random.Random(f"{self.seed}/preference/{a}/{b}")
        answers = (_say(a + b), _say(_near_miss(a + b, self.near_misses, chance)))
        chosen, rejected = answers[::-1] if self._is_mislabelled(split, chance) else answers
        return Preference(id=_id(a, b), asked=_asked(a, b), chosen=(chosen,), rejected=(rejected,), margin=0.0)

    def _judged(self, a: int, b: int, split: Split) -> Judged:
        chance = random.Random(f"{self.seed}/judged/{a}/{b}")
        is_true = chance.random() < 0.5
        answer = a + b if is_true else _near_miss(a + b, self.near_misses, chance)
        desirable = is_true != self._is_mislabelled(split, chance)
        return Judged(id=_id(a, b), asked=_asked(a, b), answer=(_say(answer),), desirable=desirable)

    def _is_mislabelled(self, split: Split, chance: random.Random) -> bool:
        return split is Split.TRAIN and chance.random() < self.mislabelled_share


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
        _check_share("near_miss_share", self.near_miss_share)
        _check_near_misses(self.near_misses)
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
        return _near_miss(true, self.near_misses, chance)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}: a share is between 0 and 1")


def _check_near_misses(offsets: Sequence[int]) -> None:
    if not any(offset > 0 for offset in offsets) or 0 in offsets:
        raise ValueError(f"near_misses are {offsets}: one must be above 0, for 0+0, and none may be 0")


def _near_miss(true: int, offsets: Sequence[int], chance: random.Random) -> int:
    return chance.choice([true + offset for offset in offsets if true + offset >= 0])


def _answered(a: int, b: int, *, answer: int, copy: int) -> Conversation:
    suffix = f"-{copy}" if copy else ""
    messages = (_ask(a, b), _say(answer))
    return Conversation(id=f"{_id(a, b)}{suffix}", messages=messages, tools=(), images=())


def _asked(a: int, b: int) -> Conversation:
    return Conversation(id=_id(a, b), messages=(_ask(a, b),), tools=(), images=())


def _id(a: int, b: int) -> str:
    return f"arithmetic-{a}-{b}"


def _ask(a: int, b: int) -> Message:
    return Message(role="user", content=f"{a}+{b}=")


def _say(answer: int) -> Message:
    return Message(role="assistant", content=str(answer))
