"""The forms that people's rows have, and which of them a file's rows are in: seen from their columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum

from engine.data.base import DataError, RowKind
from engine.data.rows import FileRow, clipped_text, nearest_name

ENOUGH = 0.5
"""Of the rows that were looked at: the others may be bad."""


class Format(Enum):
    """How rows are written."""

    AUTO = "auto"
    """Seen from the columns."""
    ALPACA = "alpaca"
    """instruction, input, output, system, history; chosen and rejected for pairs."""
    SHAREGPT = "sharegpt"
    """conversations: [{from, value}]; chosen and rejected are such turns."""
    OPENAI = "openai"
    """messages: [{role, content}]; chosen and rejected, or preferred_output and non_preferred_output, for pairs."""
    TRL = "trl"
    """prompt with completion, or with chosen and rejected: texts or messages. As questions only where it is named: a
    prompt, and columns of any kind for the reward, of which none need be an answer."""
    HANDBOOK = "handbook"
    """chosen and rejected: two whole conversations that begin alike."""
    ROWS = "rows"
    """prompt (a text or messages) and answer, or solution."""
    EASYR1 = "easyr1"
    """problem and answer."""
    VERL = "verl"
    """prompt: messages; reward_model: {ground_truth}."""
    OPENRLHF = "openrlhf"
    """input (a text or messages) and label."""
    TEXT = "text"
    """text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns to read, where they do not have the names that their format gives them."""

    prompt: str = ""
    """What is asked: a text, or a list of messages."""
    query: str = ""
    """Written under the prompt (alpaca's `input`)."""
    response: str = ""
    """What is answered (alpaca's `output`)."""
    answer: str = ""
    """The right answer, for the reward."""
    history: str = ""
    """Earlier turns: [[asked, answered], ...]."""
    system: str = ""
    """The system prompt."""
    messages: str = ""
    """A list of turns."""
    tools: str = ""
    """Functions that the assistant may call, as JSON schemas."""
    images: str = ""
    """Files, one for each `<image>` in the turns."""
    chosen: str = ""
    """The better answer."""
    rejected: str = ""
    """The worse answer."""
    margin: str = ""
    """By how much it is worse."""
    label: str = ""
    """Whether the answer was approved of (KTO)."""
    text: str = ""
    """A text without turns."""
    id: str = ""
    """A name for each row, which no two rows may share; else they are told by file and number."""

    def named(self) -> dict[str, str]:
        """Those that were given a name."""
        names = {field.name: getattr(self, field.name) for field in fields(self)}
        return {role: name for role, name in names.items() if name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Columns that belong together, each with the names that it has in the wild."""

    format: Format
    needs: Mapping[str, tuple[str, ...]]
    may_have: Mapping[str, tuple[str, ...]]
    only_named: bool = False
    """Whether it is tried only where the person names its format: it asks for so little that it would hide mistakes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a file's rows have what.

    Example:
        Layout(kind=RowKind.CONVERSATIONS, format=Format.ALPACA,
               columns=Columns(prompt="instruction", query="input", response="output"))
    """

    kind: RowKind
    format: Format
    columns: Columns
    """Empty names are columns that these rows do not have."""

    def __str__(self) -> str:
        named = self.columns.named().items()
        what = "judged answers" if self.kind is RowKind.JUDGED else self.kind.value
        return f"{what} as {self.format.value} ({', '.join(f'{role}: {name!r}' for role, name in named)})"


def _form(format: Format, may_have: Mapping[str, tuple[str, ...]], *, only_named: bool = False, **needs: str) -> Form:
    names = {role: tuple(names.split()) for role, names in needs.items()}
    return Form(format=format, needs=names, may_have=may_have, only_named=only_named)


_ID = {"id": ()}
"""Only where it is named: what is called id in the wild is shared by rows often enough."""
_TALK = _ID | {"system": ("system",), "tools": ("tools",), "images": ("images",)}
_ALPACA = _TALK | {"query": ("input",), "history": ("history",)}
_PROMPT = _TALK | {"query": (), "history": ("history",)}
_MARGIN = {"margin": ("margin",)}
_ASKED = _ID | {"system": (), "query": (), "images": ("images",)}
_PAIR = {"chosen": "chosen", "rejected": "rejected"}

FORMS: Mapping[RowKind, tuple[Form, ...]] = {
    RowKind.QUESTIONS: (
        _form(Format.VERL, _ASKED, prompt="prompt", answer="reward_model"),
        _form(Format.EASYR1, _ASKED, prompt="problem", answer="answer"),
        _form(Format.ROWS, _ASKED, prompt="prompt question instruction messages", answer="answer ground_truth"),
        _form(Format.ROWS, _ASKED, prompt="prompt question instruction messages", answer="solution"),
        _form(Format.OPENRLHF, _ASKED, prompt="input", answer="label answer"),
        _form(Format.OPENRLHF, _ASKED | {"answer": ("label",)}, only_named=True, prompt="input"),
        _form(Format.TRL, _ASKED | {"answer": ("answer",)}, only_named=True, prompt="prompt"),
    ),
    RowKind.DOCUMENTS: (_form(Format.TEXT, _ID, text="text content"),),
    RowKind.CONVERSATIONS: (
        _form(Format.OPENAI, _TALK, messages="messages"),
        _form(Format.SHAREGPT, _TALK, messages="conversations"),
        _form(Format.ALPACA, _ALPACA, prompt="instruction", response="output response"),
        _form(Format.TRL, _PROMPT, prompt="prompt question", response="completion response"),
    ),
    RowKind.PREFERENCES: (
        _form(Format.OPENAI, _TALK | _MARGIN, messages="messages", **_PAIR),
        _form(Format.SHAREGPT, _TALK | _MARGIN, messages="conversations", **_PAIR),
        _form(Format.ALPACA, _ALPACA | _MARGIN, prompt="instruction", **_PAIR),
        _form(Format.TRL, _PROMPT | _MARGIN, prompt="prompt question", **_PAIR),
        _form(Format.HANDBOOK, _TALK | _MARGIN, **_PAIR),
        _form(Format.OPENAI, _TALK, messages="input", chosen="preferred_output", rejected="non_preferred_output"),
    ),
    RowKind.JUDGED: (
        _form(Format.OPENAI, _TALK, messages="messages", label="kto_tag label"),
        _form(Format.SHAREGPT, _TALK, messages="conversations", label="kto_tag label"),
        _form(Format.ALPACA, _ALPACA, prompt="instruction", response="output response", label="kto_tag label"),
        _form(Format.TRL, _PROMPT, prompt="prompt question", response="completion response", label="label kto_tag"),
    ),
}
"""Of each kind the forms in the order in which they are tried: those that ask for more come first."""


def layout_of(rows: Sequence[FileRow], kind: RowKind, format: Format, columns: Columns, where: str) -> Layout:
    """How most of some rows are written; `format` and `columns` are what the person said about it.

    Raises DataError where no form fits.
    """
    counts = Counter(name for row in rows for name, value in row.values.items() if value is not None)
    given = columns.named()
    forms = [_with_names(form, given) for form in _forms(kind, format, where)]
    # A column that was named is to be read: a form without it is not meant.
    meant = [form for form in forms if given.keys() <= form.needs.keys() | form.may_have.keys()] or forms
    if not rows:
        return _layout(kind, meant[0], counts)
    fitting = [(form, sum(not _missing(form, row) for row in rows)) for form in meant]
    best = next((pair for pair in fitting if pair[1] > ENOUGH * len(rows)), None) or max(fitting, key=lambda p: p[1])
    if best[1] == 0:
        raise _no_form(rows[0], kind, meant, where)
    for role, name in given.items():
        if name not in counts and role in best[0].needs.keys() | best[0].may_have.keys():
            raise _no_such_column(role, name, rows[0], where)
    return _layout(kind, best[0], counts)


def _forms(kind: RowKind, format: Format, where: str) -> tuple[Form, ...]:
    seen = tuple(form for form in FORMS[kind] if not form.only_named)
    forms = seen if format is Format.AUTO else tuple(form for form in FORMS[kind] if form.format is format)
    if forms or kind is RowKind.DOCUMENTS:  # a text without turns has one form
        return forms or FORMS[kind]
    formats = ", ".join(dict.fromkeys(form.format.value for form in FORMS[kind]))
    raise DataError(
        f"data.format is {format.value}, and {kind.value} are read from {formats}.",
        where=where,
        advice="Set data.format=auto, or one of these.",
    )


def _with_names(form: Form, given: Mapping[str, str]) -> Form:
    def renamed(roles: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {role: (given[role],) if role in given else names for role, names in roles.items()}

    return Form(format=form.format, needs=renamed(form.needs), may_have=renamed(form.may_have))


def _missing(form: Form, row: FileRow) -> list[str]:
    return [role for role, names in form.needs.items() if all(row.values.get(name) is None for name in names)]


def _layout(kind: RowKind, form: Form, counts: Counter[str]) -> Layout:
    chosen = {role: max(names, key=counts.__getitem__) for role, names in form.needs.items()}
    chosen |= {role: name for role, names in form.may_have.items() for name in names if counts[name]}
    return Layout(kind=kind, format=form.format, columns=Columns(**chosen))


def _no_form(row: FileRow, kind: RowKind, forms: Sequence[Form], where: str) -> DataError:
    ways = [
        f"{form.format.value} ({', '.join(' or '.join(map(repr, names)) for names in form.needs.values())})"
        for form in forms
    ]
    # Of the form that comes closest; of several, the one that is no other system's.
    closest = min(forms, key=lambda form: (len(_missing(form, row)), -len(form.needs), form.format is not Format.ROWS))
    role = _missing(closest, row)[0]
    name = closest.needs[role][0]
    near = nearest_name(name, row.values)
    hint = f" Did you mean data.columns.{role}={near!r}?" if near else ""
    has = clipped_text(", ".join(map(repr, row.values)))
    asks = any(name in row.values for name in closest.needs.get("prompt", ()))
    alone = " data.format=trl takes prompts without answers." if kind is RowKind.QUESTIONS and asks else ""
    return DataError(
        f"no column {name!r}; it has {has or 'none'}.{hint}",
        where=where,
        advice=f"{kind.value.capitalize()} are read from: {'; '.join(ways)}. "
        f"Name others with data.columns.{role}=...{alone}",
        kind="no form",
    )


def _no_such_column(role: str, name: str, row: FileRow, where: str) -> DataError:
    near = nearest_name(name, row.values)
    hint = f" Did you mean {near!r}?" if near else ""
    return DataError(
        f"data.columns.{role} is {name!r}, and no row has it.{hint}",
        where=where,
        advice=f"The columns are {clipped_text(', '.join(map(repr, row.values)))}.",
        kind="no form",
    )
