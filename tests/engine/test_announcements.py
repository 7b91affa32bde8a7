"""What is told before the start: the batch arithmetic in correct English, and the prompt that the model reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.announcements import announcements, offline_batches, online_batches, shown
from engine.config import load_config
from engine.data.base import Split
from engine.data.template import load_tokenizer
from engine.tasks import prepare_offline, prepare_online

NANO = str(Path(__file__).parents[2] / "examples" / "nano" / "policy")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            "train.updates_per_step=2",
            "each step: 32 prompts x 8 responses = 256 sequences -> 2 updates of 128 -> "
            "up to 8192 tokens a micro-batch on 1 rank",
        ),
        (
            "train.updates_per_step=4 train.epochs_per_step=3",
            "each step: 32 prompts x 8 responses = 256 sequences -> 4 updates of 64, in 3 epochs -> "
            "up to 8192 tokens a micro-batch on 1 rank",
        ),
        (
            "rollout.prompts_per_step=1 rollout.responses_per_prompt=2 train.tokens_per_micro_batch=1 train.ranks=2",
            "each step: 1 prompt x 2 responses = 2 sequences -> 1 update of 2 -> "
            "up to 1 token a micro-batch on each of 2 ranks",
        ),
    ],
)
def test_an_online_step_in_words(overrides: str, sentence: str) -> None:
    assert online_batches(load_config(overrides.split())) == sentence


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("train.ranks=4", "each step: 64 lessons -> 1 update -> up to 8192 tokens a micro-batch on each of 4 ranks"),
        ("train.examples_per_step=1", "each step: 1 lesson -> 1 update -> up to 8192 tokens a micro-batch on 1 rank"),
    ],
)
def test_an_offline_step_in_words(overrides: str, sentence: str) -> None:
    assert offline_batches(load_config(["algo=sft", "data=arithmetic_demos", *overrides.split()])) == sentence


def test_the_first_prompt_is_shown_as_the_model_reads_it() -> None:
    config = load_config(["data.largest=5", "data.held_out=6"])
    task = prepare_online(config)
    tried, _, told = announcements(config, task)
    assert tried == "reward rewards.number:exact (native): an empty response scores 0, the first answer 1"
    question, length = task.prompts[0].messages[0].content, len(task.prompts[0].token_ids)
    assert told == f"the first of 30 prompts, {length} tokens: <|user|>{question}<|end|><|assistant|>"


def test_the_first_row_is_shown_with_the_tokens_that_are_trained_on() -> None:
    config = load_config(["algo=sft", "data=arithmetic_demos", "data.largest=5", "data.held_out=6"])
    task = prepare_offline(config)
    _, told = announcements(config, task)
    question, answer = (message.content for message in config.data.conversations(Split.TRAIN)[0].messages)
    (example,) = task.first.examples
    assert told == (
        f"the first of 30 lessons, {len(answer) + 1} of {len(example.token_ids)} tokens trained on: "
        f"<|user|>{question}<|end|><|assistant|>[[{answer}<|end|>]]"
    )


def test_rows_that_were_left_out_are_counted_and_named() -> None:
    settings = ["algo=sft", "data=arithmetic_demos", "data.largest=10", "data.held_out=6", "model.context_length=10"]
    config = load_config([*settings, "rendering.overlong=drop"])
    task = prepare_offline(config)
    remark, *_ = announcements(config, task)
    assert all(len(lesson.examples[0].token_ids) <= 10 for lesson in task.lessons_from(0).take(len(task)))
    left_out = len(config.data.pairs(Split.TRAIN)) + 6 - len(task) - len(task.held_out)
    assert remark.startswith(f"{left_out} rows left out: they are longer than 10 tokens (arithmetic-")


def test_a_long_prompt_is_cut_in_the_middle_and_what_is_left_out_is_counted() -> None:
    tokenizer = load_tokenizer(NANO)
    text = "a" * 200 + "\n" + "b" * 199
    told = shown(tuple(tokenizer.encode(text, add_special_tokens=False)), tokenizer)
    assert told == "a" * 60 + " [... 280 tokens left out ...] " + "b" * 60


def test_a_line_end_does_not_end_the_line() -> None:
    tokenizer = load_tokenizer(NANO)
    assert shown(tuple(tokenizer.encode("1\n2", add_special_tokens=False)), tokenizer) == r"1\n2"
