"""How reward functions written for other systems are called, and how what they return is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rewards.item import Item
from rewards.load import RewardError, keywords, listed, name_of
from rewards.score import CannotJudge, Failure, FailureKind, Judgement, RewardFunction, Score, clipped, judgement_of
from rewards.spec import Convention

NATIVE_EXAMPLE = "write def name(response: str, answer: str, **row) -> float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of calling a function: some conventions have two.

    Example:
        Way(convention=Convention.NATIVE, known_by={"response"}, needs={"response", "answer"},
            brings=("response", "answer"), has_columns=True, is_batch=False, given=_native, read=_one)
    """

    convention: Convention
    known_by: frozenset[str]
    """A function that names one of these parameters is called this way."""
    needs: frozenset[str]
    """What a function without `**` must take."""
    brings: tuple[str, ...]
    """What the call brings by itself."""
    has_columns: bool
    """Whether the row's columns are handed over, too."""
    is_batch: bool
    """Whether one call judges several responses."""
    given: Callable[[Sequence[Item]], dict[str, object]]
    """The keywords of a call; one item unless `is_batch`."""
    read: Callable[[object, str, int], list[Judgement]]
    """What was returned, by the function of that name, for so many items. Raises CannotJudge for all of them."""
    declared: Mapping[str, object] = field(default_factory=dict)
    """Handed over only to a function that names them."""


def way_of(function: RewardFunction, convention: Convention, spec: str) -> Way:
    """How `function` is called. Raises RewardError where its parameters do not say, or do not fit `convention`."""
    signature = inspect.signature(function)
    names, takes_any = named(signature), keywords(signature) is None
    shown = f"reward.function is {spec!r}: it is {name_of(function)}{signature}"
    ways = [way for way in WAYS if convention in (Convention.AUTO, way.convention)]
    fitting = [way for way in ways if way.known_by & names]
    if not fitting and takes_any and (convention is not Convention.AUTO or not names - {"answer"}):
        fitting = ways[:1]
    if len({way.convention for way in fitting}) > 1:
        several = " and ".join(way.convention.value for way in fitting)
        raise RewardError(f"{shown}, which fits {several}; say which with reward.convention=...")
    if not fitting:
        raise RewardError(_nothing_fits(shown, convention, ways))
    [way] = fitting[:1]
    lacking = frozenset() if takes_any else way.needs - names
    if lacking:
        advice = NATIVE_EXAMPLE if way.convention is Convention.NATIVE else f"{way.convention.value} calls it with them"
        raise RewardError(f"{shown} and takes no keyword {listed(lacking)}; {advice}")
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


# ------------------------------------------------------------------ what a call is given


def _native(items: Sequence[Item]) -> dict[str, object]:
    [item] = items
    return {**item.row, "response": item.response, "answer": item.answer}


def _columns(items: Sequence[Item]) -> dict[str, object]:
    names = dict.fromkeys(name for item in items for name in item.row)
    return {name: [item.row.get(name) for item in items] for name in names}


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
    own = {"prompts": prompts, "completions": completions, "completion_ids": ids}
    return _columns(items) | {"answer": [item.answer for item in items]} | own


def _ignored(*_arguments: object, **_keywords: object) -> None:
    """What TRL would log."""


def _verl(items: Sequence[Item]) -> dict[str, object]:
    [item] = items
    return {
        "data_source": item.row.get("data_source", ""),
        "solution_str": item.response,
        "ground_truth": _ground_truth(item),
        "extra_info": item.row.get("extra_info") or {},
    }


def _verl_batch(items: Sequence[Item]) -> dict[str, object]:
    each = [_verl([item]) for item in items]
    plural = {"data_source": "data_sources", "solution_str": "solution_strs"}
    plural |= {"ground_truth": "ground_truths", "extra_info": "extra_infos"}
    return {many: [one[name] for one in each] for name, many in plural.items()}


def _ground_truth(item: Item) -> object:
    reward_model = item.row.get("reward_model")
    if isinstance(reward_model, Mapping) and "ground_truth" in reward_model:
        return reward_model["ground_truth"]
    return item.answer


def _easyr1(items: Sequence[Item]) -> dict[str, object]:
    return {"reward_inputs": [_reward_input(item) for item in items]}


def _easyr1_one(items: Sequence[Item]) -> dict[str, object]:
    [item] = items
    return {"reward_input": _reward_input(item)}


def _reward_input(item: Item) -> dict[str, object]:
    return {
        "response": item.response,
        "response_length": len(item.token_ids),
        "ground_truth": _ground_truth(item),
    }


def _openrlhf(items: Sequence[Item]) -> dict[str, object]:
    return {
        "queries": [item.prompt + item.response for item in items],
        "prompts": [item.prompt for item in items],
        "labels": [item.answer for item in items],
    }


# ------------------------------------------------------------------ what it returned


def _one(value: object, name: str, count: int) -> list[Judgement]:
    return [judgement_of(value, name=name)]


def _many(value: object, name: str, count: int) -> list[Judgement]:
    return [judgement_of(one, name=name) for one in _values(value, name, count)]


def _numbers(value: object, name: str, count: int) -> list[Judgement]:
    return [_bare(one, name) for one in _values(value, name, count)]


def _score_of_one(value: object, name: str, count: int) -> list[Judgement]:
    return [_keyed(value, name, "score") if isinstance(value, Mapping) else judgement_of(value, name=name)]


def _score_of_many(value: object, name: str, count: int) -> list[Judgement]:
    return [judgement for one in _values(value, name, count) for judgement in _score_of_one(one, name, 1)]


def _overall_of_one(value: object, name: str, count: int) -> list[Judgement]:
    return [_keyed(value, name, "overall")]


def _overall_of_many(value: object, name: str, count: int) -> list[Judgement]:
    return [_keyed(one, name, "overall") for one in _values(value, name, count)]


def _rewards(value: object, name: str, count: int) -> list[Judgement]:
    """What trains is `rewards`; `scores` and `extra_logs` are shown where they have one number for each response."""
    if not isinstance(value, Mapping):
        return _numbers(_at_least_a_list(value, count), name, count)
    if "rewards" not in value:
        raise CannotJudge(FailureKind.MISSHAPED, f"{name} returned a mapping without 'rewards': {clipped(value)}")
    judgements = _numbers(_at_least_a_list(value["rewards"], count), name, count)
    logs = value.get("extra_logs")
    shown = {"scores": value.get("scores"), **(logs if isinstance(logs, Mapping) else {})}
    columns = {}
    for key, column in shown.items():
        plain = _at_least_a_list(column, count)
        if isinstance(plain, list | tuple) and len(plain) == count:
            columns[key] = plain
    rows = [{key: column[place] for key, column in columns.items()} for place in range(count)]
    return [_with_shown(judgement, row) for judgement, row in zip(judgements, rows, strict=True)]


def _at_least_a_list(value: object, count: int) -> object:
    """A single number is a list only where there is a single response."""
    plain = _plain(value)
    return [plain] if count == 1 and isinstance(plain, int | float) else plain


def _plain(value: object) -> object:
    """Arrays and tensors as lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _values(value: object, name: str, count: int) -> Sequence[object]:
    """One value for each response. Raises CannotJudge: which one belongs to which response, nobody could say."""
    plain = _plain(value)
    if not isinstance(plain, list | tuple):
        kind = type(value).__name__
        raise CannotJudge(FailureKind.MISSHAPED, f"{name} returned no list of {count} but a {kind}: {clipped(value)}")
    if len(plain) != count:
        wrong = f"{name} returned {len(plain)} values for {count} responses: {clipped(value)}"
        raise CannotJudge(FailureKind.MISSHAPED, wrong)
    return plain


def _bare(value: object, name: str) -> Judgement:
    if isinstance(value, Mapping):
        reason = f"{name} returned something that is no number but a mapping: {clipped(value)}"
        return Failure(kind=FailureKind.MISSHAPED, reason=reason)
    return judgement_of(value, name=name)


def _keyed(value: object, name: str, key: str) -> Judgement:
    """The number under `key` trains; the other numbers are shown."""
    if not isinstance(value, Mapping) or key not in value:
        reason = f"{name} returned no mapping with {key!r} but {clipped(value)}"
        return Failure(kind=FailureKind.MISSHAPED, reason=reason)
    return _with_shown(_bare(value[key], name), {other: part for other, part in value.items() if other != key})


def _with_shown(judgement: Judgement, shown: Mapping[object, object]) -> Judgement:
    """With further parts, those that are numbers: what is only shown fails nothing."""
    if isinstance(judgement, Failure):
        return judgement
    parts = dict(judgement.parts)
    for key, value in shown.items():
        part = _bare(value, str(key))
        if isinstance(part, Score):
            parts[str(key)] = part.total
    return Score(total=judgement.total, parts=parts)


# ------------------------------------------------------------------ the ways


def _way(
    convention: Convention,
    known_by: str,
    brings: str,
    given: Callable[[Sequence[Item]], dict[str, object]],
    read: Callable[[object, str, int], list[Judgement]],
    *,
    is_batch: bool,
) -> Way:
    own = convention in (Convention.NATIVE, Convention.BATCH)
    trl = convention is Convention.TRL
    return Way(
        convention=convention,
        known_by=frozenset(known_by.split()),
        needs=frozenset(brings.split()) if own else frozenset(),
        brings=tuple(brings.split()),
        has_columns=own or trl,
        is_batch=is_batch,
        given=given,
        read=read,
        declared={"trainer_state": None, "log_extra": _ignored, "log_metric": _ignored} if trl else {},
    )


_VERL = "data_source solution_str ground_truth extra_info"
_VERL_BATCH = "data_sources solution_strs ground_truths extra_infos"
_TRL = "prompts completions completion_ids"
WAYS = (
    _way(Convention.NATIVE, "response", "response answer", _native, _one, is_batch=False),
    _way(Convention.BATCH, "responses", "responses answers", _batch, _many, is_batch=True),
    _way(Convention.TRL, "completions completion_ids", _TRL, _trl, _numbers, is_batch=True),
    _way(Convention.VERL, "solution_str", _VERL, _verl, _score_of_one, is_batch=False),
    _way(Convention.VERL_BATCH, "solution_strs", _VERL_BATCH, _verl_batch, _score_of_many, is_batch=True),
    _way(Convention.EASYR1, "reward_inputs", "reward_inputs", _easyr1, _overall_of_many, is_batch=True),
    _way(Convention.EASYR1, "reward_input", "reward_input", _easyr1_one, _overall_of_one, is_batch=False),
    _way(Convention.OPENRLHF, "queries", "queries prompts labels", _openrlhf, _rewards, is_batch=True),
)
