"""Rows of a data set into tokens, once: prompts for the online algorithms, lessons for the offline ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.algorithms.base import Objective
from engine.data.bad_rows import BadRows
from engine.data.base import (
    Conversation,
    DataError,
    Document,
    Imitated,
    Judged,
    OfflineData,
    Preference,
    Question,
    RowKind,
    Split,
)
from engine.data.template import Template, Written
from workers.config import Overlong
from workers.lessons import Example, Lesson, Part
from workers.records import Message, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many tokens a row may have, and what becomes of a longer one."""

    tokens: int
    told: str
    """Where the number comes from, for people."""
    overlong: Overlong


# ----------------------------------------------------------------------------- prompts


def render_prompts(
    questions: Sequence[Question], template: Template, room: Room, bad: BadRows
) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Each question as the tokens that the policy answers, and the ids of those that are too long and left out."""
    prompts, dropped = [], []
    for prompt in bad.collect(questions, lambda question: _prompt(question, template, room)):
        if len(prompt.token_ids) > room.tokens:
            dropped.append(prompt.id)
        else:
            prompts.append(prompt)
    return tuple(prompts), tuple(dropped)


def _prompt(question: Question, template: Template, room: Room) -> Prompt:
    asked = Conversation(id=question.id, messages=question.messages, tools=(), images=())
    token_ids = template.prompt(asked)
    if len(token_ids) > room.tokens:
        _refuse_unless_allowed(question.id, "prompt", len(token_ids), room)
    return Prompt(
        id=question.id,
        messages=question.messages,
        token_ids=token_ids,
        answer=question.answer,
        row=question.row,
        from_text=question.from_text,
    )


# ----------------------------------------------------------------------------- lessons


Row = Conversation | Document | Preference | Judged


def rows_of(data: OfflineData, kind: RowKind, split: Split) -> Sequence[Row]:
    """The rows of a split, of the kind that an objective learns from."""
    match kind:
        case RowKind.CONVERSATIONS:
            return data.conversations(split)
        case RowKind.DOCUMENTS:
            return data.documents(split)
        case RowKind.PREFERENCES:
            return data.preferences(split)
        case RowKind.JUDGED:
            return data.judged(split)
    raise ValueError(f"{kind} is no row that an objective learns from")


class LessonMaker:
    """Rows as an objective learns from them, and what became of those that were too long."""

    def __init__(self, objective: Objective, template: Template, room: Room) -> None:
        self._imitated, self._template, self._room = objective.imitated, template, room
        self.dropped: list[str] = []
        """Ids of rows that are not learned from."""
        self.truncated: list[str] = []
        """Ids of rows whose end was cut off."""

    def __call__(self, row: Row) -> list[Lesson]:
        """One, none of a row that is dropped, several of a long text. Raises DataError for a row that cannot be."""
        match row:
            case Document():
                # A text is cut into as many lessons as it fills: none is too long.
                return _pieces(row, self._template, context_length=self._room.tokens)
            case Conversation():
                lesson = _text(row, self._template, self._imitated)
            case Preference():
                lesson = _pair(row, self._template)
            case Judged():
                lesson = _judged(row, self._template)
        fitted = self._fitted(lesson)
        return [] if fitted is None else [fitted]

    def _fitted(self, lesson: Lesson) -> Lesson | None:
        longest = max(len(example.token_ids) for example in lesson.examples)
        if longest <= self._room.tokens:
            return lesson
        _refuse_unless_allowed(lesson.id, "row", longest, self._room)
        shortened = _shortened(lesson, self._room)
        (self.dropped if shortened is None else self.truncated).append(lesson.id)
        return shortened


def _refuse_unless_allowed(id: str, what: str, tokens: int, room: Room) -> None:
    if room.overlong is Overlong.ERROR:
        raise DataError(
            f"the {what} has {tokens} tokens; {room.told} leaves room for {room.tokens}.",
            where=id,
            advice="Set a larger model.context_length, or rendering.overlong=drop to leave such rows out.",
            kind="too long",
        )


def _shortened(lesson: Lesson, room: Room) -> Lesson | None:
    """Without its sequences' ends; None where one would be left without a token to learn from. No end token is made up:
    an answer that was cut off does not teach to stop."""
    examples = tuple(
        replace(
            example,
            token_ids=example.token_ids[: room.tokens],
            mask=example.mask[: max(0, room.tokens - example.prompt_length)],
        )
        for example in lesson.examples
    )
    teaches = room.overlong is Overlong.TRUNCATE and all(any(example.mask) for example in examples)
    return replace(lesson, examples=examples) if teaches else None


def _text(row: Conversation, template: Template, imitated: Imitated) -> Lesson:
    first_answer = 0
    if imitated.last_answer_only:
        answers = [turn for turn, message in enumerate(row.messages) if message.role == "assistant"]
        first_answer = answers[-1] if answers else 0
    written = template.written(row, first_answer=first_answer)
    if imitated.prompt_too:
        # Nothing predicts the first token.
        written = replace(written, trained=(False, *[True] * (len(written.token_ids) - 1)))
    return Lesson(id=row.id, examples=(_example(written, Part.TEXT),), margin=0.0)


def _pair(row: Preference, template: Template) -> Lesson:
    examples = (
        _answer(row.asked, row.chosen, Part.CHOSEN, template),
        _answer(row.asked, row.rejected, Part.REJECTED, template),
    )
    return Lesson(id=row.id, examples=examples, margin=row.margin)


def _judged(row: Judged, template: Template) -> Lesson:
    part = Part.DESIRABLE if row.desirable else Part.UNDESIRABLE
    return Lesson(id=row.id, examples=(_answer(row.asked, row.answer, part, template),), margin=0.0)


def _answer(asked: Conversation, answer: tuple[Message, ...], part: Part, template: Template) -> Example:
    """Of what was asked, nothing is trained on, though it may hold earlier answers."""
    whole = replace(asked, messages=(*asked.messages, *answer))
    return _example(template.written(whole, first_answer=len(asked.messages)), part)


def _example(written: Written, part: Part) -> Example:
    """Up to the last token that is trained on: what a template writes behind it teaches nothing, and a reward model
    would be read there instead of at the answer's end."""
    first = written.trained.index(True)
    end = len(written.trained) - written.trained[::-1].index(True)
    return Example(part=part, token_ids=written.token_ids[:end], prompt_length=first, mask=written.trained[first:end])


def _pieces(row: Document, template: Template, *, context_length: int) -> list[Lesson]:
    """A text and its end token, cut to the context's length. A piece begins with the last token of the one before it,
    as context: every token but the very first is learned once."""
    tokenizer = template.tokenizer
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no end token, so texts would run into each other.",
            where=row.id,
            advice="Give the tokenizer an eos_token.",
        )
    # Where the tokenizer itself puts a first token before a text (llama does), so is it here.
    token_ids = tuple(tokenizer(row.text, verbose=False)["input_ids"])
    if token_ids[-1:] != (tokenizer.eos_token_id,):
        token_ids = (*token_ids, tokenizer.eos_token_id)
    starts = range(0, len(token_ids) - 1, context_length - 1)
    pieces = [token_ids[start : start + context_length] for start in starts]
    return [
        Lesson(
            id=row.id if len(pieces) == 1 else f"{row.id}-{number}",
            examples=(Example(part=Part.TEXT, token_ids=piece, prompt_length=1, mask=(True,) * (len(piece) - 1)),),
            margin=0.0,
        )
        for number, piece in enumerate(pieces, start=1)
    ]
