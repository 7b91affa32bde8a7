"""What functions of each convention return, read as judgements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewards.score import CannotJudge, Failure, FailureKind, Judgement, Score, clipped, judgement_of

# Each reads what the function of a name returned for so many responses. Raises CannotJudge for all of them.


def one(value: object, name: str, count: int) -> list[Judgement]:
    """Of one response: a number, named parts, or None."""
    return [judgement_of(value, name=name)]


def each(value: object, name: str, count: int) -> list[Judgement]:
    """A list of such."""
    return [judgement_of(own, name=name) for own in _values(value, name, count)]


def numbers(value: object, name: str, count: int) -> list[Judgement]:
    """A list of numbers or None."""
    return [_number(own, name) for own in _values(value, name, count)]


def one_score(value: object, name: str, count: int) -> list[Judgement]:
    """Of one response: a number, or a mapping of which `score` trains."""
    return [_keyed(value, name, "score") if isinstance(value, Mapping) else judgement_of(value, name=name)]


def each_score(value: object, name: str, count: int) -> list[Judgement]:
    """A list of such."""
    return [judgement for own in _values(value, name, count) for judgement in one_score(own, name, 1)]


def one_overall(value: object, name: str, count: int) -> list[Judgement]:
    """Of one response: a mapping of which `overall` trains."""
    return [_keyed(value, name, "overall")]


def each_overall(value: object, name: str, count: int) -> list[Judgement]:
    """A list of such."""
    return [_keyed(own, name, "overall") for own in _values(value, name, count)]


def rewards(value: object, name: str, count: int) -> list[Judgement]:
    """A list of numbers, or a mapping: `rewards` trains, and `scores` and `extra_logs` are shown.

    What is shown has a number for each response, or one for all of them together.
    """
    if not isinstance(value, Mapping):
        return numbers(_at_least_a_list(value, count), name, count)
    if "rewards" not in value:
        raise CannotJudge(FailureKind.MISSHAPED, f"{name} returned a mapping without 'rewards': {clipped(value)}")
    judgements = numbers(_at_least_a_list(value["rewards"], count), name, count)
    logs = value.get("extra_logs")
    shown = {"scores": value.get("scores"), **(logs if isinstance(logs, Mapping) else {})}
    columns = {}
    for key, column in shown.items():
        plain = _plain(column)
        plain = plain if isinstance(plain, list | tuple) else [plain] * count
        if len(plain) == count:
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


def _number(value: object, name: str) -> Judgement:
    if isinstance(value, Mapping):
        reason = f"{name} returned something that is no number but a mapping: {clipped(value)}"
        return Failure(kind=FailureKind.MISSHAPED, reason=reason)
    return judgement_of(value, name=name)


def _keyed(value: object, name: str, key: str) -> Judgement:
    """The number under `key` trains; the other numbers are shown."""
    if not isinstance(value, Mapping) or key not in value:
        reason = f"{name} returned no mapping with {key!r} but {clipped(value)}"
        return Failure(kind=FailureKind.MISSHAPED, reason=reason)
    return _with_shown(_number(value[key], name), {other: part for other, part in value.items() if other != key})


def _with_shown(judgement: Judgement, shown: Mapping[object, object]) -> Judgement:
    """With further parts, those that are numbers: what is only shown fails nothing."""
    if isinstance(judgement, Failure):
        return judgement
    parts = dict(judgement.parts)
    for key, value in shown.items():
        part = _number(value, str(key))
        if isinstance(part, Score):
            parts[str(key)] = part.total
    return Score(total=judgement.total, parts=parts)
