"""The rollout actor between a run and its engine: what is asked for at once is decoded at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosted import hosting_for

from workers import rollout_actor
from workers.config import ClusterConfig, ModelConfig, RolloutConfig
from workers.group import Hosting, RolloutGroup
from workers.placement import Place
from workers.records import Completion, Group, GroupRequest, Prompt, Sampling, Span, Stop
from workers.rollout_worker import CompletionRequest, CutOff

GROUPS, SIBLINGS = 40, 2
PLACES = (Place(role="rollout", index=0, cpus=1.0, gpus=0.0),)


def asked(draw: int) -> GroupRequest:
    prompt = Prompt(id="p", messages=(), token_ids=(3, 4), answer="", row={}, from_text=True)
    sampling = Sampling(temperature=1.0, max_tokens=1)
    return GroupRequest(prompt=prompt, draw=draw, num_samples=SIBLINGS, seed=0, sampling=sampling, with_greedy=False)


def actor_of_many() -> type:
    """A class of this function's own travels to the workers whole: they cannot import this file."""

    class EngineOfMany:
        """Answers nobody until all are there."""

        def __init__(self, *_: object, **__: object) -> None:
            self.waiting: list[CompletionRequest] = []

        def add(self, request: CompletionRequest) -> None:
            self.waiting.append(request)

        def is_busy(self) -> bool:
            return len(self.waiting) == GROUPS * SIBLINGS

        def step(self) -> list[tuple[str, Completion]]:
            done, self.waiting = self.waiting, []
            span = Span(start=0, end=1, sampled=True, version=0)
            one = Completion(
                token_ids=np.zeros(1, np.int32), logprobs=np.zeros(1, np.float32), spans=(span,), stop=Stop.LENGTH
            )
            return [(request.id, one) for request in done]

        def decode(self, token_ids: object, *, show_special: bool) -> str:
            return ""

    class ActorOfMany(rollout_actor.RolloutActor):
        def __init__(self, *arguments: Any) -> None:
            rollout_actor.engine_class = lambda kind: EngineOfMany
            super().__init__(*arguments)

    return ActorOfMany


def actor_of_cut() -> type:
    class EndlessEngine:
        """The responses to draw 0 end at once, the others never."""

        def __init__(self, *_: object, **__: object) -> None:
            self.steps: dict[str, int] = {}

        def add(self, request: CompletionRequest) -> None:
            self.steps[request.id] = 0

        def is_busy(self) -> bool:
            return bool(self.steps)

        def abort(self, request_id: str) -> int:
            return self.steps.pop(request_id)

        def step(self) -> list[tuple[str, Completion]]:
            self.steps = {key: count + 1 for key, count in self.steps.items()}
            done = [key for key in self.steps if key.startswith("0/")]
            span = Span(start=0, end=1, sampled=True, version=0)
            one = Completion(
                token_ids=np.zeros(1, np.int32), logprobs=np.zeros(1, np.float32), spans=(span,), stop=Stop.LENGTH
            )
            return [(key, one) for key in done if self.steps.pop(key)]

        def decode(self, token_ids: object, *, show_special: bool) -> str:
            return ""

    class ActorOfCut(rollout_actor.RolloutActor):
        def __init__(self, *arguments: Any) -> None:
            rollout_actor.engine_class = lambda kind: EndlessEngine
            super().__init__(*arguments)

    return ActorOfCut


@pytest.fixture
def hosting(tmp_path: Path) -> Iterator[Hosting]:
    with hosting_for(PLACES, tmp_path, call_timeout_s=20.0) as hosting:
        yield hosting


def test_a_group_that_is_cut_off_is_waited_for_no_longer_and_its_tokens_are_counted(hosting: Hosting) -> None:
    group = RolloutGroup(
        actor_of_cut(), hosting, arguments=[(ModelConfig(), RolloutConfig(), ClusterConfig(), 0, 0, "nobody")]
    )
    refs = [group.generate(asked(draw)) for draw in range(3)]
    assert group.wait_for_one(refs, verb="sample") == 0
    assert group.cut_off([1, 2]) > 0
    assert group.cut_off([1, 2]) == 0
    for ref in refs[1:]:
        with pytest.raises(CutOff):
            group.wait([ref], verb="sample")
    [first] = group.wait(refs[:1], verb="sample")
    assert first.draw == 0


def test_no_group_waits_outside_the_engine_until_another_has_ended(hosting: Hosting) -> None:
    group = RolloutGroup(
        actor_of_many(), hosting, arguments=[(ModelConfig(), RolloutConfig(), ClusterConfig(), 0, 0, "nobody")]
    )
    refs = [group.generate(asked(draw)) for draw in range(GROUPS)]
    arrived: list[Group] = group.wait(refs, verb="sample")
    assert [one.draw for one in arrived] == list(range(GROUPS))
    assert all(len(one.rollouts) == SIBLINGS for one in arrived)
