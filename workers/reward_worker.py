"""Judges groups of rollouts: a plain class, which becomes a Ray actor where its resources are known."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rewards.item import Item
from rewards.load import check_columns
from rewards.mix import Voice, mixed
from rewards.spec import RewardSpec
from workers.canary import Canary, try_out
from workers.config import RewardConfig
from workers.records import Group, GroupSummary, Rollout
from workers.reward_pool import RewardPool
from workers.scoring_child import Limits


class RewardWorker:
    """The functions that judge a run, in processes that can be killed, spoken to in records."""

    def __init__(self, specs: Sequence[RewardSpec], canaries: Sequence[Canary], config: RewardConfig) -> None:
        """Raises RewardError where a function cannot be used here."""
        self._specs = tuple(specs)
        self._pool = RewardPool(self._specs, limits_of(config), processes=config.processes)
        try:
            for line in try_out(self._pool, self._specs, canaries):
                print(line, flush=True)
        except BaseException:
            self.close()
            raise

    def score(self, group: Group) -> GroupSummary:
        """What is to be known of the siblings of one draw, judged. Any thread may ask."""
        started = time.perf_counter()
        judgements = [mixed(voices) for voices in self.voices(group)]
        return group.summary(judgements, judging_s=time.perf_counter() - started)

    def voices(self, group: Group) -> list[list[Voice]]:
        """What each function says of each response, the greedy one last."""
        items = items_of(group)
        for spec in self._specs:
            check_columns(spec, items[0].row)
        asked = [
            self._pool.judge(n, items) if spec.judges(items[0].row) else None for n, spec in enumerate(self._specs)
        ]
        said = [future.result() if future else [None] * len(items) for future in asked]
        return [
            [
                Voice(name=spec.name, weight=spec.weight, abstains=spec.abstains, said=own[place])
                for spec, own in zip(self._specs, said, strict=True)
            ]
            for place in range(len(items))
        ]

    def close(self) -> None:
        """Kill the rewards' processes."""
        self._pool.close()


def limits_of(config: RewardConfig) -> Limits:
    """What judging one response may take."""
    return Limits(timeout_s=config.timeout_s, memory_gib=config.memory_gib)


def items_of(group: Group) -> list[Item]:
    """Each response as the functions are asked about it, the greedy one last."""
    return [_item(rollout, group.prompt_text) for rollout in group.responses]


def _item(rollout: Rollout, prompt_text: str) -> Item:
    prompt = rollout.prompt
    return Item(
        id=f"{rollout.draw}/{rollout.sample}",
        response=rollout.text,
        answer=prompt.answer,
        prompt=prompt_text,
        messages=tuple({"role": message.role, "content": message.content} for message in prompt.messages),
        from_text=prompt.from_text,
        token_ids=tuple(rollout.token_ids.tolist()),
        row=prompt.row,
    )
