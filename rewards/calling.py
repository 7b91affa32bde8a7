"""A reward function bound to its settings: items in, judgements out, whatever convention the function follows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from rewards.item import Item
from rewards.load import RewardError, build_reward, keywords, listed, name_of, nearest
from rewards.score import KEEPS_NOTHING, Judgement, judgement_of
from rewards.spec import Convention, Isolation, RewardSpec


class BoundReward:
    """A function with its configured arguments, ready for responses. Building it imports the person's file."""

    def __init__(self, spec: RewardSpec) -> None:
        """Raises RewardError, for people, where the function cannot be used as configured."""
        self.spec = spec
        self.function = build_reward(spec.source)
        self.convention = Convention.NATIVE
        """Never AUTO: where the settings leave it open, what the function's parameters say."""
        self.isolation = _isolation(spec, keeps_nothing=getattr(self.function, KEEPS_NOTHING, False))
        """Never AUTO."""
        self.judges_together = False
        """Whether one call judges all responses to a prompt."""
        self._parameters = keywords(inspect.signature(self.function))
        self._check_arguments()

    def judge(self, items: Sequence[Item]) -> list[Judgement]:
        """One judgement an item, by one call where `judges_together`, else by one for each. What it raises rises."""
        return [self._judge(item) for item in items]

    def _judge(self, item: Item) -> Judgement:
        given = {**item.row, **self.spec.arguments, "response": item.response, "answer": item.answer}
        if self._parameters is not None:
            given = {name: value for name, value in given.items() if name in self._parameters}
        return judgement_of(self.function(**given), name=name_of(self.function))

    def _check_arguments(self) -> None:
        for name in self.spec.arguments:
            if name in ("response", "answer"):
                raise RewardError(f"reward.arguments has {name!r}, which every row brings itself; remove it")
            if self._parameters is not None and name not in self._parameters:
                near = nearest(name, self._parameters - {"response", "answer"})
                raise RewardError(
                    f"reward.arguments has {name!r}, but {name_of(self.function)} takes {listed(self._parameters)}"
                    f"{near}; rename or remove it"
                )


def _isolation(spec: RewardSpec, *, keeps_nothing: bool) -> Isolation:
    if spec.isolation is not Isolation.AUTO:
        return spec.isolation
    return Isolation.WORKER if keeps_nothing else Isolation.SAMPLE
