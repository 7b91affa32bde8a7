"""What a run works on: data read, rendered and checked, the reward tried, before anything expensive starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config import Config
from engine.data.base import DataError, Split
from engine.data.render import load_tokenizer, render_lessons, render_prompts
from engine.fingerprint import fingerprint
from rewards.load import RewardSource, build_reward, read_reward, try_reward
from workers.lessons import Lesson
from workers.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineTask:
    """Prompts to learn from, prompts to be measured on, and the judge."""

    prompts: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    reward: RewardSource
    fingerprint: str
    """Of the training rows and their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineTask:
    """Rows to learn from, and rows to be measured on."""

    lessons: tuple[Lesson, ...]
    held_out: tuple[Lesson, ...]
    reward: None
    """Nothing is sampled, so nothing is judged."""
    fingerprint: str


def prepare_online(config: Config) -> OnlineTask:
    """Raises DataError or RewardError, for people."""
    reward = read_reward(config.reward.function)
    function = build_reward(reward)
    tokenizer = load_tokenizer(config.model.path)
    train, held_out = (
        render_prompts(
            config.data.questions(split), tokenizer, config.model.context_length, config.rollout.max_response_tokens
        )
        for split in (Split.TRAIN, Split.HELD_OUT)
    )
    _refuse_empty(train, config)
    try_reward(function, train[0].answer, train[0].row, config.reward.arguments)
    rows = [(prompt.id, prompt.token_ids, prompt.answer) for prompt in train]
    return OnlineTask(prompts=train, held_out=held_out, reward=reward, fingerprint=fingerprint(rows))


def prepare_offline(config: Config) -> OfflineTask:
    """Raises DataError, for people."""
    tokenizer = load_tokenizer(config.model.path)
    train, held_out = (
        render_lessons(config.data, config.algo, split, tokenizer, config.model.context_length)
        for split in (Split.TRAIN, Split.HELD_OUT)
    )
    _refuse_empty(train, config)
    rows = [
        (lesson.id, [(example.part, example.token_ids, example.mask) for example in lesson.examples], lesson.margin)
        for lesson in train
    ]
    return OfflineTask(lessons=train, held_out=held_out, reward=None, fingerprint=fingerprint(rows))


def _refuse_empty(rows: Sequence[object], config: Config) -> None:
    if not rows:
        raise DataError(
            "there is nothing to train on.",
            where=type(config.data).__name__,
            advice="Hold out fewer rows, or add some.",
        )
