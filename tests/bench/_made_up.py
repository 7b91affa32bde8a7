"""Groups of made-up tokens, for benches that learn from responses that nobody sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.records import Group, Message, Prompt, Rollout, Row, Span, Stop

SEED = 0


def group_of(prompt: Sequence[int], responses: Sequence[np.ndarray], *, draw: int, logprob: float) -> Group:
    """Of token ids. Every one of a response was sampled by version 0, with this log-prob."""
    asked = Prompt(
        id=f"made-up-{draw}", messages=(Message(role="user", content="?"),), token_ids=tuple(prompt), answer="",
        row={}, from_text=True,
    )  # fmt: skip
    rollouts = tuple(
        Rollout(
            prompt=asked, draw=draw, sample=sample, text="", token_ids=tokens.astype(np.int32),
            logprobs=np.full(len(tokens), logprob, dtype=np.float32),
            spans=(Span(start=0, end=len(tokens), sampled=True, version=0),), stop=Stop.LENGTH,
        )
        for sample, tokens in enumerate(responses)
    )  # fmt: skip
    return Group(rollouts=rollouts, greedy=None, prompt_text="")


def rows_of(groups: Sequence[Group]) -> tuple[Row, ...]:
    """All responses, with rewards by chance."""
    random = np.random.default_rng(SEED)
    return tuple(
        Row(
            draw=group.draw,
            sample=rollout.sample,
            reward=float(random.normal()),
            prompt_tokens=sum(own.action_tokens() for own in group.rollouts),
        )
        for group in groups
        for rollout in group.rollouts
    )


def seen_pairs(prompt: int, responses: Sequence[int]) -> int:
    """Pairs of a token and one that it sees, itself too: in a prompt of so many tokens, and from each response.

    >>> seen_pairs(2, (1, 2))
    13
    """
    return prompt * (prompt + 1) // 2 + sum(own * prompt + own * (own + 1) // 2 for own in responses)
