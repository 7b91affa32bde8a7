"""What rewards are asked about in tests: one question, and whatever is answered to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rewards.item import Item
from workers.records import Group, Message, Prompt, Rollout, Span, Stop

QUESTION, ANSWER = "12+34=", "46"


def item(response: str, *, row: Mapping[str, object] | None = None, prompt: str = QUESTION) -> Item:
    return Item(
        id="7/0",
        response=response,
        answer=ANSWER,
        prompt=prompt,
        messages=({"role": "user", "content": QUESTION},),
        from_text=True,
        token_ids=(),
        row=row or {},
    )


def rollouts(*texts: str, draw: int = 7, row: Mapping[str, object] | None = None) -> tuple[Rollout, ...]:
    """Siblings, of as many tokens as letters."""
    messages = (Message(role="user", content=QUESTION),)
    prompt = Prompt(
        id=f"arithmetic-{draw}", messages=messages, token_ids=(3, 4, 5), answer=ANSWER, row=row or {}, from_text=True
    )
    return tuple(
        Rollout(
            prompt=prompt,
            draw=draw,
            sample=sample,
            text=text,
            token_ids=np.arange(len(text), dtype=np.int32),
            logprobs=np.zeros(len(text), dtype=np.float32),
            spans=(Span(start=0, end=len(text), sampled=True, version=2),),
            stop=Stop.END,
        )
        for sample, text in enumerate(texts)
    )


def generated(*texts: str, greedy: str | None = None, draw: int = 7, row: Mapping[str, object] | None = None) -> Group:
    siblings = rollouts(*texts, *(() if greedy is None else (greedy,)), draw=draw, row=row)
    return Group(rollouts=siblings[: len(texts)], greedy=None if greedy is None else siblings[-1], prompt_text=QUESTION)
