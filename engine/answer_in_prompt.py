"""Rows whose prompt holds their own answer: a policy that copies is then paid for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from workers.records import Prompt

LEAST_CHARACTERS = 4
"""A shorter answer stands in a prompt by chance."""
LEAST_SHARE = 0.01
"""Of the rows; below it nothing is said."""
MOST_NAMED = 3


def answers_in_prompts(prompts: Sequence[Prompt]) -> str | None:
    """One line for people, or None where (nearly) no prompt holds its answer as words of their own."""
    found = [prompt.id for prompt in prompts if holds_answer(prompt)]
    if len(found) < LEAST_SHARE * len(prompts) or not found:
        return None
    named = ", ".join(found[:MOST_NAMED]) + (", ..." if len(found) > MOST_NAMED else "")
    return (
        f"{len(found):,} of {len(prompts):,} prompts ({len(found) / len(prompts):.0%}) hold their own reference answer "
        f"({named}): copying pays there, which only questions with given choices mean"
    )


def holds_answer(prompt: Prompt) -> bool:
    """Whether its answer stands in one of its messages, not as a piece of a longer word or number."""
    answer = prompt.answer.strip().casefold()
    if len(answer) < LEAST_CHARACTERS:
        return False
    texts = [message.content.casefold() for message in prompt.messages]
    # Most texts do not hold it at all, and `in` is quicker than a pattern.
    return any(answer in text and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) for text in texts)
