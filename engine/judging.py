"""What judges a run: the configured functions, read and tried before anything expensive starts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from rewards.item import Item
from rewards.load import RewardError, check_columns, listed, read_reward
from rewards.score import Failure, FailureKind, Judgement
from rewards.spec import RewardSpec
from workers.config import FunctionConfig, RewardConfig
from workers.records import Prompt
from workers.reward_pool import RewardPool
from workers.reward_worker import limits_of

BROKEN = (FailureKind.EXCEPTION, FailureKind.CRASH, FailureKind.TIMEOUT, FailureKind.MISSHAPED)
"""Of a function that is tried: it would fail on other responses, too."""


def reward_specs(reward: RewardConfig) -> tuple[RewardSpec, ...]:
    """Every function that judges, the one of `reward.function` first. Raises RewardError for a file not to be read."""
    alone = FunctionConfig(
        function=reward.function,
        convention=reward.convention,
        arguments=reward.arguments,
        weight=reward.function_weight,
        isolation=reward.isolation,
    )
    named = ({"": alone} if reward.function else {}) | reward.functions
    return tuple(_spec(name, config) for name, config in named.items())


def _spec(name: str, config: FunctionConfig) -> RewardSpec:
    source = read_reward(config.function)
    return RewardSpec(
        name=name or source.name,
        source=source,
        convention=config.convention,
        arguments=config.arguments,
        weight=config.weight,
        data_sources=tuple(config.data_sources),
        abstains=config.abstains,
        isolation=config.isolation,
    )


def try_rewards(specs: Sequence[RewardSpec], reward: RewardConfig, prompts: Sequence[Prompt]) -> None:
    """Ask each function about an empty response to the first prompt that it judges: a broken one stops the run here.

    It is imported and called as in a reward worker: in a process of its own, with the same limits. Raises RewardError.
    """
    if not specs:
        return
    with closing(RewardPool(specs, limits_of(reward), processes=1)) as pool:
        for number, spec in enumerate(specs):
            canary = next((prompt for prompt in prompts if spec.judges(prompt.row)), None)
            if canary is None:
                continue
            check_columns(spec, canary.row)
            [judgement] = pool.judge(number, [canary_item(canary)]).result()
            _refuse_broken(spec, canary, judgement)


def canary_item(prompt: Prompt) -> Item:
    """An empty response."""
    messages = tuple({"role": message.role, "content": message.content} for message in prompt.messages)
    return Item(
        id="canary",
        response="",
        answer=prompt.answer,
        prompt="\n".join(message.content for message in prompt.messages),
        messages=messages,
        from_text=prompt.from_text,
        token_ids=(),
        row=prompt.row,
    )


def _refuse_broken(spec: RewardSpec, canary: Prompt, judgement: Judgement) -> None:
    if isinstance(judgement, Failure) and judgement.kind in BROKEN:
        raise RewardError(
            f"{spec.source.spec} raised when tried with an empty response, the first prompt's answer "
            f"{canary.answer!r} and its columns ({listed(canary.row)}):\n{judgement.reason}"
        )
