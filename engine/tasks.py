"""What a run works on: data read, rendered and checked, the reward tried, before anything expensive starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.config import Config
from engine.data.base import DataError, Split
from engine.data.render import Room, render_lessons, render_prompts
from engine.data.template import Template, load_tokenizer
from engine.fingerprint import fingerprint
from rewards.load import RewardSource, build_reward, read_reward, try_reward
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
    reward: RewardSource
    remarks: tuple[str, ...]
    """What became of rows that were too long, for people."""
    fingerprint: str
    """Of the training rows and their order."""

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineTask:
    """Rows to learn from, and rows to be measured on."""

    lessons: tuple[Lesson, ...]
    held_out: tuple[Lesson, ...]
    reward: None
    """Nothing is sampled, so nothing is judged."""
    remarks: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.lessons)


def prepare_online(config: Config) -> OnlineTask:
    """Raises DataError or RewardError, for people."""
    reward = read_reward(config.reward.function)
    function = build_reward(reward)
    template, room = Template(tokenizer_of(config)), room_of(config)
    (train, too_long), (held_out, too_long_held_out) = (
        render_prompts(config.data.questions(split), template, room) for split in (Split.TRAIN, Split.HELD_OUT)
    )
    _refuse_empty(train, config)
    try_reward(function, train[0].answer, train[0].row, config.reward.arguments)
    rows = [(prompt.id, prompt.token_ids, prompt.answer) for prompt in train]
    return OnlineTask(
        prompts=train,
        held_out=held_out,
        reward=reward,
        remarks=_remarks(dropped=(*too_long, *too_long_held_out), truncated=(), room=room),
        fingerprint=fingerprint(rows),
    )


def prepare_offline(config: Config) -> OfflineTask:
    """Raises DataError, for people."""
    template, room = Template(tokenizer_of(config)), room_of(config)
    train, held_out = (
        render_lessons(config.data, config.algo, split, template, room) for split in (Split.TRAIN, Split.HELD_OUT)
    )
    _refuse_empty(train.lessons, config)
    rows = [
        (lesson.id, [(example.part, example.token_ids, example.mask) for example in lesson.examples], lesson.margin)
        for lesson in train.lessons
    ]
    return OfflineTask(
        lessons=train.lessons,
        held_out=held_out.lessons,
        reward=None,
        remarks=_remarks(
            dropped=(*train.dropped, *held_out.dropped), truncated=(*train.truncated, *held_out.truncated), room=room
        ),
        fingerprint=fingerprint(rows),
    )


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
