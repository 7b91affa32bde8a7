"""What a person is told before anything expensive starts: the run's batches in words, and what the model reads."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from engine.config import Config
from engine.tasks import OfflineTask, OnlineTask, tokenizer_of
from engine.tuning_checks import told as tuning_told
from workers.lessons import Example, Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 120
"""Of the prompt that is shown; a longer one is cut in the middle."""


def announcements(config: Config, task: OnlineTask | OfflineTask) -> tuple[str, ...]:
    """One line each."""
    tokenizer = tokenizer_of(config)
    before = (*task.remarks, *filter(None, [tuning_told(config)]))
    if isinstance(task, OnlineTask):
        return *before, online_batches(config), first_prompt(task, tokenizer)
    return *before, offline_batches(config), *first_lesson(task, tokenizer)


def online_batches(config: Config) -> str:
    """
    Example:
        each step: 32 prompts x 8 responses = 256 sequences -> 2 updates of 128, in 3 epochs -> up to 8192 tokens a
        micro-batch on each of 4 ranks
    """
    rollout, updates, epochs = config.rollout, config.train.updates_per_step, config.train.epochs_per_step
    sequences = rollout.prompts_per_step * rollout.responses_per_prompt
    again = f", in {epochs} epochs" if epochs > 1 else ""
    ahead = f"; engines run up to {_count(rollout.max_staleness, 'step')} ahead" if rollout.max_staleness else ""
    return (
        f"each step: {_count(rollout.prompts_per_step, 'prompt')} x {_count(rollout.responses_per_prompt, 'response')}"
        f" = {_count(sequences, 'sequence')} -> {_count(updates, 'update')} of {sequences // updates}{again}"
        f" -> {_micro_batches(config)}{ahead}"
    )


def offline_batches(config: Config) -> str:
    """
    Example:
        each step: 64 lessons -> 1 update -> up to 8192 tokens a micro-batch on 1 rank
    """
    return f"each step: {_count(config.train.examples_per_step, 'lesson')} -> 1 update -> {_micro_batches(config)}"


def first_prompt(task: OnlineTask, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first training prompt as the model reads it."""
    token_ids = task.prompts[0].token_ids
    return (
        f"the first of {_count(len(task.prompts), 'prompt')}, {_tokens(len(token_ids))}: {shown(token_ids, tokenizer)}"
    )


def first_lesson(task: OfflineTask, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The first lesson as the model reads it, what it learns to write between brackets.

    Example:
        the first of 9600 lessons, 2 of 9 tokens trained on: <|user|>12+34=<|end|><|assistant|>[[46<|end|>]]
    """
    lesson = task.first
    lines = []
    for example in lesson.examples:
        name = "" if example.part is Part.TEXT else f"{example.part.value}, "
        counted = f"{sum(example.mask)} of {_tokens(len(example.token_ids))} trained on"
        lines.append(f"{name}{counted}: {_marked(example, tokenizer)}")
    of_all = f" of {_count(len(task), 'lesson')}" if len(task) else ""
    return (f"the first{of_all}, {lines[0]}", *lines[1:])


def _marked(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    trained = (*[False] * example.prompt_length, *example.mask)
    text = ""
    for is_trained, run in itertools.groupby(zip(example.token_ids, trained, strict=True), key=lambda pair: pair[1]):
        piece = shown(tuple(token for token, _ in run), tokenizer)
        text += f"[[{piece}]]" if is_trained else piece
    return text


def shown(token_ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    """Decoded, special tokens and line ends visible, on one line; the middle of a long text is left out and counted."""
    half = MOST_TOKENS // 2
    left_out = len(token_ids) - 2 * half
    if left_out <= 0:
        return _decoded(token_ids, tokenizer)
    beginning, end = _decoded(token_ids[:half], tokenizer), _decoded(token_ids[-half:], tokenizer)
    return f"{beginning} [... {_tokens(left_out)} left out ...] {end}"


def _decoded(token_ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text.translate({ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"})


def _micro_batches(config: Config) -> str:
    ranks = config.train.ranks
    where = "on 1 rank" if ranks == 1 else f"on each of {ranks} ranks"
    return f"up to {_tokens(config.train.tokens_per_micro_batch)} a micro-batch {where}"


def _tokens(number: int) -> str:
    return _count(number, "token")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
