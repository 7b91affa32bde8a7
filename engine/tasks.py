"""What a run works on: data read, rendered and checked, the reward tried, before anything expensive starts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.answer_in_prompt import answers_in_prompts
from engine.config import Config
from engine.data.bad_rows import BadRows, Tolerance
from engine.data.base import DataError, Split
from engine.data.checked import CheckedData
from engine.data.files import FilesData
from engine.data.render import LessonMaker, Room, render_prompts, rows_of
from engine.data.template import Template, load_tokenizer
from engine.fingerprint import fingerprint
from engine.judging import AnswerCheck, canaries_for, reward_specs, try_rewards
from engine.lesson_source import LessonsFrom, ShuffledLessons, StreamedLessons
from rewards.spec import RewardSpec
from workers.canary import Canary
from workers.lessons import Lesson
from workers.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineTask:
    """Prompts to learn from, prompts to be measured on, and the judge."""

    prompts: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    rewards: tuple[RewardSpec, ...]
    """The functions; none where a reward model judges alone."""
    canaries: tuple[Canary, ...]
    """What each function was tried on, for the reward workers to try it on, too."""
    remarks: tuple[str, ...]
    """What became of rows that were too long, for people."""
    bad: BadRows
    """Rows that cannot be written as tokens, and were left out."""
    fingerprint: str
    """Of the training rows and their order."""

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineTask:
    """Rows to learn from, and rows to be measured on."""

    num_lessons: int
    """0 for a stream, whose end nobody knows."""
    first: Lesson
    """That a person is shown."""
    lessons_from: LessonsFrom
    held_out: tuple[Lesson, ...]
    rewards: tuple[()]
    """Nothing is sampled, so nothing is judged."""
    canaries: tuple[()]
    remarks: tuple[str, ...]
    bad: BadRows
    fingerprint: str

    def __len__(self) -> int:
        return self.num_lessons


def prepare_online(config: Config) -> OnlineTask:
    """Raises DataError or RewardError, for people."""
    rewards = reward_specs(config.reward)
    template, room, bad = Template(tokenizer_of(config)), room_of(config), BadRows(tolerance_of(config))
    (train, too_long), (held_out, too_long_held_out) = (
        render_prompts(config.data.questions(split), template, room, bad) for split in (Split.TRAIN, Split.HELD_OUT)
    )
    check = AnswerCheck(rewards, config.reward, (*train, *held_out))
    unjudgeable = BadRows(bad.tolerance)
    train, held_out = (tuple(unjudgeable.collect(prompts, check)) for prompts in (train, held_out))
    bad = _placed(bad.with_later(unjudgeable), config)
    bad.settle()
    _refuse_empty(train, config)
    canaries = canaries_for(rewards, train)
    tried = try_rewards(rewards, config.reward, canaries)
    rows = [(prompt.id, prompt.token_ids, prompt.answer) for prompt in train]
    return OnlineTask(
        prompts=train,
        held_out=held_out,
        rewards=rewards,
        canaries=canaries,
        remarks=(
            *_remarks(dropped=(*too_long, *too_long_held_out), truncated=(), room=room),
            *filter(None, [answers_in_prompts(train)]),
            *tried,
        ),
        bad=bad,
        fingerprint=fingerprint(rows),
    )


def prepare_offline(config: Config) -> OfflineTask:
    """Raises DataError, for people."""
    make = LessonMaker(config.algo, Template(tokenizer_of(config)), room_of(config))
    return _streamed(config, make) if is_stream(config) else _in_memory(config, make)


def _in_memory(config: Config, make: LessonMaker) -> OfflineTask:
    bad = BadRows(tolerance_of(config))
    train, held_out = (
        tuple(itertools.chain(*bad.collect(rows_of(config.data, config.algo.rows, split), make)))
        for split in (Split.TRAIN, Split.HELD_OUT)
    )
    bad = _placed(bad, config)
    bad.settle()
    _refuse_empty(train, config)

    def lessons_from(next_draw: int, lessons_taken: int = 0) -> ShuffledLessons:
        return ShuffledLessons(train, seed=config.run.seed, next_draw=next_draw)

    return OfflineTask(
        num_lessons=len(train),
        first=train[0],
        lessons_from=lessons_from,
        held_out=_measured(held_out, config),
        rewards=(),
        canaries=(),
        remarks=_remarks(dropped=make.dropped, truncated=make.truncated, room=room_of(config)),
        bad=bad,
        fingerprint=fingerprint(_told(train)),
    )


def _streamed(config: Config, make: LessonMaker) -> OfflineTask:
    """Of a stream, what is held out is read now, and the rest while the run goes on."""
    tolerance, beginning = tolerance_of(config), config.data.stream(config.algo.rows)
    bad = BadRows(tolerance)
    held_out = tuple(itertools.chain(*bad.collect(beginning.held_out, make)))
    bad.settle()
    found = beginning.bad.with_later(bad)

    def lessons_from(next_draw: int, lessons_taken: int = 0) -> StreamedLessons:
        stream = config.data.stream(config.algo.rows, drawn=next_draw)
        return StreamedLessons(stream, make, tolerance, lessons_taken=lessons_taken)

    return OfflineTask(
        num_lessons=0,
        first=StreamedLessons(beginning, make, tolerance, lessons_taken=0).take(1)[0],
        lessons_from=lessons_from,
        held_out=_measured(held_out, config),
        rewards=(),
        canaries=(),
        remarks=(*beginning.described, *_remarks(dropped=make.dropped, truncated=make.truncated, room=room_of(config))),
        bad=found,
        fingerprint=fingerprint((config.data, _told(held_out))),
    )


def _measured(held_out: Sequence[Lesson], config: Config) -> tuple[Lesson, ...]:
    """As many as the run is measured on, with what they are compared with."""
    return tuple(config.algo.assemble(held_out[: config.evaluation.prompts]))


def _told(lessons: Sequence[Lesson]) -> list[object]:
    """What decides whether two sets of lessons are the same."""
    return [
        (lesson.id, [(example.part, example.token_ids, example.mask) for example in lesson.examples], lesson.margin)
        for lesson in lessons
    ]


def is_stream(config: Config) -> bool:
    """Whether rows are read while the run goes on."""
    return isinstance(config.data, FilesData) and config.data.streaming


def tolerance_of(config: Config) -> Tolerance:
    """How many rows may be bad; where the data set does not say, none."""
    return config.data.tolerance if isinstance(config.data, CheckedData) else Tolerance()


def _placed(bad: BadRows, config: Config) -> BadRows:
    if not (bad.found and isinstance(config.data, CheckedData)):
        return bad
    return bad.placed(config.data.places({row.id for row in bad.found}))


def tokenizer_of(config: Config) -> PreTrainedTokenizerBase:
    """With the chat template that rows are written by."""
    return load_tokenizer(config.model.path, config.rendering.chat_template)


def room_of(config: Config) -> Room:
    """What a row may have: online, a prompt leaves room for its response."""
    context, overlong = config.model.context_length, config.rendering.overlong
    if not config.algo.online:
        return Room(tokens=context, told="model.context_length", overlong=overlong)
    response = config.rollout.max_response_tokens
    told = f"model.context_length ({context}) less rollout.max_response_tokens ({response})"
    return Room(tokens=context - response, told=told, overlong=overlong)


def _remarks(*, dropped: Sequence[str], truncated: Sequence[str], room: Room) -> tuple[str, ...]:
    told = (
        (dropped, f"left out: they are longer than {room.tokens} tokens"),
        (truncated, f"cut off at {room.tokens} tokens"),
    )
    return tuple(f"{len(ids)} rows {what} ({shortened(ids)})" for ids, what in told if ids)


def shortened(ids: Sequence[str]) -> str:
    """A few of them by name."""
    return ", ".join(ids[:MOST_NAMED]) + (", ..." if len(ids) > MOST_NAMED else "")


def _refuse_empty(rows: Sequence[object], config: Config) -> None:
    if not rows:
        raise DataError(
            "there is nothing to train on.",
            where=type(config.data).__name__,
            advice="Hold out fewer rows, add some, or make room for longer ones (model.context_length).",
        )
