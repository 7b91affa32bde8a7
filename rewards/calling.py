"""A reward function bound to its settings: items in, judgements out, whatever convention the function follows."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import inspect
from collections.abc import Sequence

from rewards.conventions import named, way_of
from rewards.item import Item
from rewards.load import RewardError, build_reward, keywords, listed, name_of, nearest, told
from rewards.score import (
    ANSWER_CHECK,
    KEEPS_NOTHING,
    CannotJudge,
    Failure,
    FailureKind,
    Judgement,
    RewardFunction,
    Score,
    clipped,
)
from rewards.spec import AnswerCheckSpec, Convention, Isolation, RewardSpec, Spec


class BoundReward:
    """A function with its configured arguments, ready for responses. Building it imports the person's file."""

    def __init__(self, spec: RewardSpec) -> None:
        """Raises RewardError, for people, where the function cannot be used as configured."""
        self.spec = spec
        self.function = build_reward(spec.source)
        self._way = way_of(self.function, spec.convention, spec.source.spec)
        self.convention = self._way.convention
        """Never AUTO: where the settings leave it open, what the function's parameters say."""
        self.isolation = _isolation(spec, keeps_nothing=getattr(self.function, KEEPS_NOTHING, False))
        """Never AUTO."""
        self._is_async = _is_async(self.function)
        self.judges_together = self._way.is_batch or self._is_async
        """Whether all responses to a prompt are judged at once: by one call, or by coroutines that run side by side."""
        signature = inspect.signature(self.function)
        self._parameters, self._named = keywords(signature), named(signature)
        self._check_arguments()
        self._check_required(signature)

    def judge(self, items: Sequence[Item]) -> list[Judgement]:
        """One judgement an item, by one call where the convention has lists, else by one for each.

        What the function raises rises, except from one of several coroutines: that is the failure of its own item.
        """
        if len(items) > 1:
            # Responses to one prompt share its row, which one of them must not change for the others.
            items = [dataclasses.replace(item, row=copy.deepcopy(dict(item.row))) for item in items]
        if self._is_async:
            together = self._awaited(items) if self._way.is_batch else self._side_by_side(items)
            return self._runner.run(together) if self.isolation is Isolation.WORKER else asyncio.run(together)
        calls = [items] if self._way.is_batch else [[item] for item in items]
        return [one for call in calls for one in self._read(self.function(**self._given(call)), len(call))]

    @functools.cached_property
    def _runner(self) -> asyncio.Runner:
        """One event loop for all calls of a process, so that a function may keep its connections."""
        return asyncio.Runner()

    async def _side_by_side(self, items: Sequence[Item]) -> list[Judgement]:
        return list(await asyncio.gather(*(self._alone(item) for item in items)))

    async def _alone(self, item: Item) -> Judgement:
        try:
            [judgement] = await self._awaited([item])
        except CannotJudge as reason:
            return reason.failure
        except Exception as error:  # the user's own code: its siblings are judged all the same
            return Failure(kind=FailureKind.EXCEPTION, reason=told(error))
        return judgement

    async def _awaited(self, items: Sequence[Item]) -> list[Judgement]:
        value = self.function(**self._given(items))
        return self._read(await value if inspect.isawaitable(value) else value, len(items))

    def _given(self, items: Sequence[Item]) -> dict[str, object]:
        given = self._way.given(items)
        own = {name: given[name] for name in self._way.brings}
        given = {**self._offered(items), **given, **self.spec.arguments, **own}
        if self._parameters is not None:
            given = {name: value for name, value in given.items() if name in self._parameters}
        return given

    def _read(self, value: object, count: int) -> list[Judgement]:
        try:
            return self._way.read(value, name_of(self.function), count)
        except CannotJudge as reason:
            return [reason.failure] * count

    def _offered(self, items: Sequence[Item]) -> dict[str, object]:
        """What a native function may ask for by name, where its row has no such column: the prompt."""
        if self.convention is Convention.NATIVE:
            offered: dict[str, object] = {"prompt": items[0].prompt, "messages": list(items[0].messages)}
        elif self.convention is Convention.BATCH:
            offered = {"prompts": [item.prompt for item in items], "messages": [list(item.messages) for item in items]}
        else:
            offered = {}
        return {name: value for name, value in offered.items() if name in self._named}

    def _check_arguments(self) -> None:
        for name in self.spec.arguments:
            if name in self._way.brings:
                raise RewardError(f"reward.arguments has {name!r}, which every row brings itself; remove it")
            if self._parameters is not None and name not in self._parameters:
                near = nearest(name, self._parameters - frozenset(self._way.brings))
                raise RewardError(
                    f"reward.arguments has {name!r}, but {name_of(self.function)} takes {listed(self._parameters)}"
                    f"{near}; rename or remove it"
                )

    def _check_required(self, signature: inspect.Signature) -> None:
        """Where no column is handed over, what must be given is known without any data."""
        if self._way.has_columns:
            return
        required = {name for name in self._named if signature.parameters[name].default is inspect.Parameter.empty}
        lacking = required - frozenset(self._way.brings) - self.spec.arguments.keys()
        if lacking:
            raise RewardError(
                f"reward.function is {self.spec.source.spec!r}: {name_of(self.function)} needs {listed(lacking)}, but "
                f"{self.convention.value} calls it with {listed(self._way.brings)}; give the rest in reward.arguments"
            )


class BoundCheck:
    """A function's own check of reference answers, asked as the function itself would be. A function without one reads
    every answer."""

    convention, isolation, judges_together = Convention.BATCH, Isolation.SAMPLE, True

    def __init__(self, spec: AnswerCheckSpec) -> None:
        """Raises RewardError, for people, where the function cannot be used as configured."""
        self.spec = spec
        self.function = build_reward(spec.source)

    def judge(self, items: Sequence[Item]) -> list[Judgement]:
        """An answer that cannot be read is a failure, with what is wrong with it."""
        check = getattr(self.function, ANSWER_CHECK, lambda _: None)
        return [_of_answer(check(item.answer)) for item in items]


def bound(spec: Spec) -> BoundReward | BoundCheck:
    """Raises RewardError, for people, where the function cannot be used as configured."""
    return BoundCheck(spec) if isinstance(spec, AnswerCheckSpec) else BoundReward(spec)


def _of_answer(wrong: object) -> Judgement:
    if wrong is None:
        return Score(total=1.0, parts={"answer": 1.0})
    if isinstance(wrong, str):
        return Failure(kind=FailureKind.UNREADABLE, reason=wrong)
    reason = f"a check of answers says what is wrong with one, or None, and returned {clipped(wrong)}"
    return Failure(kind=FailureKind.MISSHAPED, reason=reason)


def _is_async(function: RewardFunction) -> bool:
    function = inspect.unwrap(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _isolation(spec: RewardSpec, *, keeps_nothing: bool) -> Isolation:
    if spec.isolation is not Isolation.AUTO:
        return spec.isolation
    return Isolation.WORKER if keeps_nothing else Isolation.SAMPLE
