"""What judges a run: the configured functions, read and tried before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from engine.data.base import BadRow, RowError
from engine.data.rows import clipped
from rewards.item import Item
from rewards.load import RewardError, build_reward, check_columns, listed, nearest, read_reward
from rewards.score import ANSWER_CHECK, Failure, FailureKind, answers_checked_by
from rewards.spec import ROUTING_COLUMN, AnswerCheckSpec, RewardSpec
from workers.canary import Canary, try_out
from workers.config import FunctionConfig, JudgeConfig, RewardConfig
from workers.judge_endpoint import arguments_of, asks_own_judge, name_of, waits_for_judge
from workers.records import Prompt
from workers.reward_pool import RewardPool
from workers.reward_worker import limits_of

ANSWER = "answer"
MOST_SOURCES = 16
"""That a function is tried on."""
ANSWERS_AT_ONCE = 256
"""That a person's check is asked about in one call, which has a response's time."""


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
    for name, config in named.items():
        _check_plain(config.arguments, f"reward.functions.{name}.arguments" if name else "reward.arguments")
    return tuple(_spec(name, config, reward.judge) for name, config in named.items())


def _check_plain(arguments: Mapping[str, Any], where: str) -> None:
    """What goes to other processes and into the run's files. Raises RewardError for what is lost there, or changes."""
    for name, value in arguments.items():
        if not (isinstance(name, str) and name.isidentifier()):
            raise RewardError(f"{where} has {name!r}, which no parameter can be called; rename it")
        strange = _strange(value)
        if strange:
            raise RewardError(
                f"{where}.{name} is {clipped(value)}, with a {type(strange[0]).__name__} in it: an argument is a text, "
                "a number, true, false, null, or a list or mapping of these; write it so, and let the function read it"
            )


def _strange(value: object) -> list[object]:
    """What of a value is not plain."""
    if isinstance(value, list | tuple):
        return [strange for own in value for strange in _strange(own)]
    if isinstance(value, Mapping):
        keys = [key for key in value if not isinstance(key, str | int | float)]
        return [*keys, *(strange for own in value.values() for strange in _strange(own))]
    return [] if value is None or type(value) in (str, bool, int, float) else [value]


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
    """For each function the first row that it judges; for a person's the first of every data source, on which its code
    may depend."""
    return tuple(
        Canary(function=number, empty=_tried(prompt, ""), right=_tried(prompt, prompt.answer))
        for number, spec in enumerate(specs)
        for prompt in _first_of_sources(spec, prompts)[: 1 if is_of_the_house(spec) else MOST_SOURCES]
    )


def _first_of_sources(spec: RewardSpec, prompts: Sequence[Prompt]) -> list[Prompt]:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        if spec.judges(prompt.row):
            first.setdefault(str(prompt.row.get(ROUTING_COLUMN)), prompt)
    return list(first.values())


def is_of_the_house(spec: RewardSpec) -> bool:
    """Whether it comes along, rather than being a person's."""
    return spec.source.spec.startswith("rewards.")


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

    def __init__(self, specs: Sequence[RewardSpec], reward: RewardConfig, prompts: Sequence[Prompt]) -> None:
        """`prompts`: all that it will be asked about. Raises RewardError where a person's own check is broken."""
        self._specs, self._has_model = tuple(specs), bool(reward.model)
        house = [spec for spec in specs if is_of_the_house(spec)]
        checks = {spec.name: getattr(build_reward(spec.source), ANSWER_CHECK, None) for spec in house}
        # A person's file is imported in processes that can be killed, so its check is asked about all answers at once.
        others = [spec for spec in specs if spec not in house and _may_check(spec)]
        said = _said_by_checks(others, reward, prompts)
        self._checks: dict[str, Callable[[str], str | None] | None] = checks | {name: said[name].get for name in said}

    def __call__(self, prompt: Prompt) -> Prompt:
        """The prompt itself. Raises RowError."""
        judges = [spec for spec in self._specs if spec.judges(prompt.row)]
        if not judges and not self._has_model:
            raise _of_no_function(prompt, self._specs)
        for spec in judges:
            check = self._checks.get(spec.name)
            wrong = check(prompt.answer) if check else None
            if wrong:
                kind = f"an answer that {spec.source.spec} cannot read"
                problem = f"{spec.source.spec} cannot read the answer {clipped(prompt.answer)}: {wrong}."
                raise _bad(prompt, kind, problem, column=ANSWER, value=prompt.answer, advice="Mend the answer")
        return prompt


def _may_check(spec: RewardSpec) -> bool:
    """Whether its file names the decorator that declares a check; of a module, nobody knows without importing it."""
    texts = (spec.source.text, *spec.source.beside.values())
    return not spec.source.file or any(answers_checked_by.__name__ in text for text in texts)


def _said_by_checks(
    specs: Sequence[RewardSpec], reward: RewardConfig, prompts: Sequence[Prompt]
) -> dict[str, dict[str, str]]:
    """Of each function, by its name, the answers that its own check refuses, with what is wrong with them."""
    if not specs:
        return {}
    checks = [AnswerCheckSpec(name=spec.name, source=spec.source) for spec in specs]
    with closing(RewardPool(checks, limits_of(reward), processes=1)) as pool:
        return {spec.name: _refused(pool, number, spec, prompts) for number, spec in enumerate(specs)}


def _refused(pool: RewardPool, number: int, spec: RewardSpec, prompts: Sequence[Prompt]) -> dict[str, str]:
    first = {prompt.answer: prompt for prompt in reversed(prompts) if spec.judges(prompt.row)}
    items = [_item(prompt, "", id=prompt.id) for prompt in first.values()]
    refused: dict[str, str] = {}
    for start in range(0, len(items), ANSWERS_AT_ONCE):
        asked = items[start : start + ANSWERS_AT_ONCE]
        for item, said in zip(asked, pool.judge(number, asked).result(), strict=True):
            if not isinstance(said, Failure):
                continue
            _, _, reason = said.reason.partition(f"response {item.id}: ")
            if said.kind is not FailureKind.UNREADABLE:
                raise RewardError(
                    f"the check of answers of {spec.source.spec} failed ({said.kind.value}) on the answer "
                    f"{clipped(item.answer)} of {item.id}:\n{reason}"
                )
            refused[item.answer] = reason
    return refused


def _of_no_function(prompt: Prompt, specs: Sequence[RewardSpec]) -> RowError:
    value = prompt.row.get(ROUTING_COLUMN)
    sources = sorted({source for spec in specs for source in spec.data_sources})
    near = nearest(str(value), frozenset(sources))
    return _bad(
        prompt,
        f"a {ROUTING_COLUMN} that no reward function judges",
        f"{ROUTING_COLUMN} is {clipped(value)}, and no reward function judges it; they judge {listed(sources)}{near}.",
        column=ROUTING_COLUMN,
        value=value,
        advice="Name it in a function's data_sources",
    )


def _bad(prompt: Prompt, kind: str, problem: str, *, column: str, value: object, advice: str) -> RowError:
    bad = BadRow(
        id=prompt.id, where=prompt.id, kind=kind, column=column, value=clipped(value), nearest="", problem=problem
    )
    return RowError(bad, advice=f"{advice}, or leave the row out.")


def _tried(prompt: Prompt, response: str) -> Item:
    return _item(prompt, response, id=f"{prompt.id}, tried")


def _item(prompt: Prompt, response: str, *, id: str) -> Item:
    return Item(
        id=id,
        response=response,
        answer=prompt.answer,
        prompt="\n".join(message.content for message in prompt.messages),
        messages=tuple({"role": message.role, "content": message.content} for message in prompt.messages),
        from_text=prompt.from_text,
        token_ids=(),
        row=prompt.row,
    )
