"""The reward of `tests.bench.trl`, in the form that TRL calls, which both sides take."""

from __future__ import annotations


def digits(prompts: list[object], completions: list[str | list[dict[str, str]]], **_: object) -> list[float]:
    """The share of digits in each response: a text, or the turns of a conversation."""
    texts = [told if isinstance(told, str) else told[0]["content"] for told in completions]
    return [sum(character.isdigit() for character in text) / max(1, len(text)) for text in texts]
