"""What judges a run: the configured functions, read and tried before anything expensive starts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from engine.data.base import DataError
from engine.data.rows import clipped
from rewards.item import Item
from rewards.load import build_reward, check_columns, read_reward
from rewards.score import ANSWER_CHECK
from rewards.spec import ROUTING_COLUMN, RewardSpec
from workers.canary import Canary, try_out
from workers.config import FunctionConfig, JudgeConfig, RewardConfig
from workers.judge_endpoint import arguments_of, asks_own_judge, name_of, waits_for_judge
from workers.records import Prompt
from workers.reward_pool import RewardPool
from workers.reward_worker import limits_of


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
    return tuple(_spec(name, config, reward.judge) for name, config in named.items())


def _spec(name: str, config: FunctionConfig, judge: JudgeConfig) -> RewardSpec:
    source = read_reward(config.function)
    asks = bool(judge.model) and asks_own_judge(config.function, config.arguments)
    return RewardSpec(
        name=name or source.name,
        source=source,
        convention=config.convention,
        arguments=arguments_of(judge, config.arguments) if asks else config.arguments,
        weight=config.weight,
        data_sources=tuple(config.data_sources),
        abstains=config.abstains,
        isolation=config.isolation,
    )


def canaries_for(specs: Sequence[RewardSpec], prompts: Sequence[Prompt]) -> tuple[Canary, ...]:
    """One for each function that judges a row, of the first row that it judges."""
    first = [next((prompt for prompt in prompts if spec.judges(prompt.row)), None) for spec in specs]
    return tuple(
        Canary(function=number, empty=_item(prompt, ""), right=_item(prompt, prompt.answer))
        for number, prompt in enumerate(first)
        if prompt is not None
    )


def try_rewards(specs: Sequence[RewardSpec], reward: RewardConfig, canaries: Sequence[Canary]) -> tuple[str, ...]:
    """Try each function as a reward worker will, in a process of its own, with the same limits: a line for each.

    Those that wait for the run's own judge are imported only, and tried where rewards run, when it is up. Raises
    RewardError for a broken one.
    """
    if not specs:
        return ()
    waiting = [canary for canary in canaries if waits_for_judge(specs[canary.function])]
    for canary in waiting:
        check_columns(specs[canary.function], canary.empty.row)
    with closing(RewardPool(specs, limits_of(reward), processes=1)) as pool:
        tried = try_out(pool, specs, [canary for canary in canaries if canary not in waiting])
    names = (specs[canary.function].source.spec for canary in waiting)
    return (*tried, *(f"reward {name}: tried when its judge {name_of(reward.judge)} is up" for name in names))


class AnswerCheck:
    """Refuses rows that cannot be judged: by no function, or by none that can read their reference answer."""

    def __init__(self, specs: Sequence[RewardSpec], reward: RewardConfig) -> None:
        self._specs, self._has_model = tuple(specs), bool(reward.model)
        # Only of functions of the house: a person's file is imported in processes that can be killed.
        own = [spec for spec in specs if spec.source.spec.startswith("rewards.")]
        self._checks = {spec.name: getattr(build_reward(spec.source), ANSWER_CHECK, None) for spec in own}

    def __call__(self, prompt: Prompt) -> Prompt:
        """The prompt itself. Raises DataError."""
        judges = [spec for spec in self._specs if spec.judges(prompt.row)]
        if not judges and not self._has_model:
            raise DataError(
                f"{ROUTING_COLUMN} is {clipped(prompt.row.get(ROUTING_COLUMN))}, and no reward function judges it.",
                where=prompt.id,
                advice="Name it in a function's data_sources, or leave the row out.",
                kind=f"a {ROUTING_COLUMN} that no function judges",
            )
        for spec in judges:
            check = self._checks.get(spec.name)
            wrong = check(prompt.answer) if check else None
            if wrong:
                raise DataError(
                    f"{spec.source.spec} cannot read the answer {clipped(prompt.answer)}: {wrong}.",
                    where=prompt.id,
                    advice="Mend the answer, or leave the row out.",
                    kind=f"an answer that {spec.source.spec} cannot read",
                )
        return prompt


def _item(prompt: Prompt, response: str) -> Item:
    return Item(
        id=f"{prompt.id}, tried",
        response=response,
        answer=prompt.answer,
        prompt="\n".join(message.content for message in prompt.messages),
        messages=tuple({"role": message.role, "content": message.content} for message in prompt.messages),
        from_text=prompt.from_text,
        token_ids=(),
        row=prompt.row,
    )
