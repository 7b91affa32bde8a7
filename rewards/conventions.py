"""How reward functions written for other systems are recognised and called: `WAYS` is the table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rewards import returned
from rewards.item import Item
from rewards.load import RewardError, keywords, listed, name_of
from rewards.score import Judgement, RewardFunction
from rewards.spec import Convention

NATIVE_EXAMPLE = "write def name(response: str, answer: str, **row) -> float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of calling a function: some conventions have two.

    Example:
        Way(convention=Convention.NATIVE, is_batch=False, known_by=("response",), brings=("response", "answer"),
            needs_all=True, has_columns=True, given=_native, read=returned.one)
    """

    convention: Convention
    is_batch: bool
    """Whether one call judges several responses."""
    known_by: tuple[str, ...]
    """A function that names one of these parameters is called this way."""
    brings: tuple[str, ...]
    """What the call brings by itself, whatever the row and the settings have."""
    needs_all: bool
    """Whether a function must take all of that."""
    has_columns: bool
    """Whether the row's columns are handed over, too."""
    given: Callable[[Sequence[Item]], dict[str, object]]
    """The keywords of a call; one item unless `is_batch`."""
    read: Callable[[object, str, int], list[Judgement]]
    """What was returned, by the function of that name, for so many items. Raises CannotJudge for all of them."""


# ------------------------------------------------------------------ what a call is given


def _native(items: Sequence[Item]) -> dict[str, object]:
    [item] = items
    return {**item.row, "response": item.response, "answer": item.answer}


def _batch(items: Sequence[Item]) -> dict[str, object]:
    own = {"responses": [item.response for item in items], "answers": [item.answer for item in items]}
    return _columns(items) | own


def _trl(items: Sequence[Item]) -> dict[str, object]:
    prompts = [
        item.messages[-1]["content"] if item.from_text else [dict(one) for one in item.messages] for item in items
    ]
    completions = [
        item.response if item.from_text else [{"role": "assistant", "content": item.response}] for item in items
    ]
    ids = [list(item.token_ids) for item in items]
    told = {"trainer_state": _NoTrainerState(), "log_extra": _ignored, "log_metric": _ignored}
    own = {"prompts": prompts, "completions": completions, "completion_ids": ids}
    return {"answer": [item.answer for item in items]} | _columns(items) | told | own


def _verl(items: Sequence[Item]) -> dict[str, object]:
    [item] = items
    extra_info = item.row.get("extra_info") or {}
    if isinstance(extra_info, Mapping):
        # What verl adds itself, of a conversation with one question and one response.
        extra_info = {**extra_info, "num_turns": 2, "rollout_reward_scores": {}}
    return {
        "data_source": item.row.get("data_source", ""),
        "solution_str": item.response,
        "ground_truth": _ground_truth(item),
        "extra_info": extra_info,
    }


def _verl_batch(items: Sequence[Item]) -> dict[str, object]:
    each = [_verl([item]) for item in items]
    plural = {"data_source": "data_sources", "solution_str": "solution_strs"}
    plural |= {"ground_truth": "ground_truths", "extra_info": "extra_infos"}
    return {many: [one[name] for one in each] for name, many in plural.items()}


def _easyr1(items: Sequence[Item]) -> dict[str, object]:
    return {"reward_inputs": [_reward_input(item) for item in items]}


def _easyr1_one(items: Sequence[Item]) -> dict[str, object]:
    [item] = items
    return {"reward_input": _reward_input(item)}


def _reward_input(item: Item) -> dict[str, object]:
    return {"response": item.response, "response_length": len(item.token_ids), "ground_truth": _ground_truth(item)}


def _openrlhf(items: Sequence[Item]) -> dict[str, object]:
    return {
        "queries": [item.prompt + item.response for item in items],
        "prompts": [item.prompt for item in items],
        "labels": [_ground_truth(item) for item in items],
    }


def _columns(items: Sequence[Item]) -> dict[str, object]:
    names = dict.fromkeys(name for item in items for name in item.row)
    return {name: [item.row.get(name) for item in items] for name in names}


def _ground_truth(item: Item) -> object:
    """Of the type that the data have, as the other systems hand it over."""
    reward_model = item.row.get("reward_model")
    if isinstance(reward_model, Mapping) and "ground_truth" in reward_model:
        return reward_model["ground_truth"]
    return item.row.get("answer", item.answer)


class _NoTrainerState:
    """Where TRL says how far training is."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(
            f"trainer_state.{name}: how far training is, a reward is not told here, so that a response is always worth "
            "the same; leave it out of the function"
        )


def _ignored(*_arguments: object, **_keywords: object) -> None:
    """What TRL would log."""


# ------------------------------------------------------------------ the table

WAYS = (
    Way(
        convention=Convention.NATIVE,
        is_batch=False,
        known_by=("response",),
        brings=("response", "answer"),
        needs_all=True,
        has_columns=True,
        given=_native,
        read=returned.one,
    ),
    Way(
        convention=Convention.BATCH,
        is_batch=True,
        known_by=("responses",),
        brings=("responses", "answers"),
        needs_all=True,
        has_columns=True,
        given=_batch,
        read=returned.each,
    ),
    Way(
        convention=Convention.TRL,
        is_batch=True,
        known_by=("completions", "completion_ids"),
        brings=("prompts", "completions", "completion_ids"),
        needs_all=False,
        has_columns=True,
        given=_trl,
        read=returned.numbers,
    ),
    Way(
        convention=Convention.VERL,
        is_batch=False,
        known_by=("solution_str",),
        brings=("data_source", "solution_str", "ground_truth", "extra_info"),
        needs_all=False,
        has_columns=False,
        given=_verl,
        read=returned.one_score,
    ),
    Way(
        convention=Convention.VERL_BATCH,
        is_batch=True,
        known_by=("solution_strs",),
        brings=("data_sources", "solution_strs", "ground_truths", "extra_infos"),
        needs_all=False,
        has_columns=False,
        given=_verl_batch,
        read=returned.each_score,
    ),
    Way(
        convention=Convention.EASYR1,
        is_batch=True,
        known_by=("reward_inputs",),
        brings=("reward_inputs",),
        needs_all=False,
        has_columns=False,
        given=_easyr1,
        read=returned.each_overall,
    ),
    Way(
        convention=Convention.EASYR1,
        is_batch=False,
        known_by=("reward_input",),
        brings=("reward_input",),
        needs_all=False,
        has_columns=False,
        given=_easyr1_one,
        read=returned.one_overall,
    ),
    Way(
        convention=Convention.OPENRLHF,
        is_batch=True,
        known_by=("queries",),
        brings=("queries", "prompts", "labels"),
        needs_all=False,
        has_columns=False,
        given=_openrlhf,
        read=returned.rewards,
    ),
)


# ------------------------------------------------------------------ which of them a function is called


def way_of(function: RewardFunction, convention: Convention, spec: str) -> Way:
    """How `function` is called. Raises RewardError where its parameters do not say, or do not fit `convention`."""
    signature = inspect.signature(function)
    names, takes_any = named(signature), keywords(signature) is None
    shown = f"reward.function is {spec!r}: it is {name_of(function)}{signature}"
    ways = [way for way in WAYS if convention in (Convention.AUTO, way.convention)]
    fitting = [way for way in ways if names.intersection(way.known_by)]
    if not fitting and takes_any and (convention is not Convention.AUTO or not names - {"answer"}):
        fitting = ways[:1]
    if len({way.convention for way in fitting}) > 1:
        several = " and ".join(way.convention.value for way in fitting)
        raise RewardError(f"{shown}, which fits {several}; say which with reward.convention=...")
    if not fitting:
        raise RewardError(_nothing_fits(shown, convention, ways))
    [way] = fitting[:1]
    lacking = frozenset(way.brings) - names if way.needs_all and not takes_any else frozenset()
    if lacking:
        raise RewardError(f"{shown} and takes no keyword {listed(lacking)}; {NATIVE_EXAMPLE}")
    return way


def named(signature: inspect.Signature) -> frozenset[str]:
    """The parameters that can be given as keywords, by their own names."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(name for name, parameter in signature.parameters.items() if parameter.kind in kinds)


def _nothing_fits(shown: str, convention: Convention, ways: Sequence[Way]) -> str:
    known = "\n".join(f"  {way.convention.value}: {', '.join(way.brings)}" for way in ways)
    if convention is Convention.AUTO:
        return (
            f"{shown}, which fits no known convention:\n{known}\n"
            f"Rename its parameters ({NATIVE_EXAMPLE}), or name the convention with reward.convention=..."
        )
    return (
        f"{shown}, which does not fit reward.convention={convention.value}; it is called with\n{known}\n"
        "Rename its parameters, or set another reward.convention"
    )
