"""What a reward is asked about: one response, with all that somebody's function may want to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One response to judge.

    Example:
        Item(id="7/0", response="46", answer="46", prompt="<|user|>12+34=<|end|><|assistant|>",
             messages=({"role": "user", "content": "12+34="},), from_text=True, token_ids=(9, 10, 1),
             row={"a": 12, "b": 34})
    """

    id: str
    """`draw/sample`: which response of the run it is."""
    response: str
    """Special tokens left out."""
    answer: str
    """The right one, as the data row has it."""
    prompt: str
    """As the policy read it: the chat template applied."""
    messages: tuple[Mapping[str, str], ...]
    """The conversation that is answered: `role` and `content` of each turn."""
    from_text: bool
    """Whether the data row asks in a text rather than in messages: foreign functions are handed what the row has."""
    token_ids: tuple[int, ...]
    """Of the response, exactly as sampled."""
    row: Mapping[str, object]
    """The other columns of the data row; `answer` among them, as it is written there, where that is no text."""
