"""Judges groups of rollouts: a plain class, which becomes a Ray actor where its resources are known."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rewards.item import Item
from rewards.load import check_columns
from rewards.mix import Voice, mixed
from rewards.score import Judgement
from rewards.spec import RewardSpec
from workers.canary import Canary, try_out
from workers.config import RewardConfig
from workers.records import GeneratedGroup, Group, GroupSummary, Rollout, ScoredRollout
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

    def score(self, generated: GeneratedGroup) -> tuple[Group, GroupSummary]:
        """The siblings of one draw, judged, and what the driver needs to know of them. Any thread may ask."""
        started = time.perf_counter()
        judgements = [mixed(voices) for voices in self.voices(generated)]
        group = scored_group(generated, judgements)
        return group, group.summary(judging_s=time.perf_counter() - started)

    def voices(self, generated: GeneratedGroup) -> list[list[Voice]]:
        """What each function says of each response, the greedy one last."""
        items = items_of(generated)
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


def items_of(generated: GeneratedGroup) -> list[Item]:
    """Each response as the functions are asked about it, the greedy one last."""
    rollouts = responses_of(generated)
    draws = sorted({rollout.draw for rollout in rollouts})
    if len(draws) > 1:
        raise ValueError(f"a group holds the rollouts of one draw, not of draws {draws}")
    return [_item(rollout, generated.prompt_text) for rollout in rollouts]


def responses_of(generated: GeneratedGroup) -> tuple[Rollout, ...]:
    return (*generated.rollouts, *((generated.greedy,) if generated.greedy else ()))


def scored_group(generated: GeneratedGroup, judgements: Sequence[Judgement]) -> Group:
    """The group with a judgement for each of its responses, the greedy one last."""
    rollouts = responses_of(generated)
    scored = tuple(
        ScoredRollout(rollout=rollout, judgement=judgement)
        for rollout, judgement in zip(rollouts, judgements, strict=True)
    )
    siblings = len(generated.rollouts)
    return Group(
        prompt=rollouts[0].prompt,
        draw=rollouts[0].draw,
        rollouts=scored[:siblings],
        greedy=scored[siblings] if generated.greedy else None,
    )


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
