"""How long is the response? In characters, or in tokens for a function whose name says so."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.score import keeps_nothing


@keeps_nothing
def near(response: str, answer: str, *, target: int, width: int, **row: object) -> dict[str, float]:
    """From 1 at `target` characters down to 0 at `width` characters more or fewer.

    >>> near("12345678", "", target=10, width=4), near("", "", target=10, width=4)
    ({'length': 0.5}, {'length': 0.0})
    """
    _positive("width", width)
    return {"length": max(0.0, 1.0 - abs(len(response) - target) / width)}


@keeps_nothing
def at_most(response: str, answer: str, *, max_length: int, **row: object) -> dict[str, float]:
    """1 up to `max_length` characters, else 0; an empty response has no length to praise.

    >>> at_most("1234", "", max_length=4), at_most("12345", "", max_length=4), at_most("", "", max_length=4)
    ({'length': 1.0}, {'length': 0.0}, {'length': 0.0})
    """
    return {"length": float(0 < len(response) <= max_length)}


@keeps_nothing
def soft_overlong(
    response: str, answer: str, *, max_length: int, share: float = 0.2, penalty: float = 1.0, **row: object
) -> dict[str, float]:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13) in characters: from 0 down to `-penalty`.

    It begins where the last `share` of `max_length` begins, and stays at `-penalty` beyond `max_length`. In tokens
    the algorithm has the same as `shaping.overlong_share`; use one of them.

    >>> [soft_overlong("x" * n, "", max_length=10, share=0.4)["length"] for n in (6, 8, 10, 99)]
    [0.0, -0.5, -1.0, -1.0]
    """
    return {"length": overlong(len(response), max_length=max_length, share=share, penalty=penalty)}


@keeps_nothing
def soft_overlong_tokens(
    prompts: Sequence[object],
    completions: Sequence[object],
    completion_ids: Sequence[Sequence[int]],
    max_length: int,
    share: float = 0.2,
    penalty: float = 1.0,
    **columns: object,
) -> list[float]:
    """`soft_overlong` in tokens. It follows TRL's convention, which is the one that hands over token ids.

    >>> soft_overlong_tokens([""] * 2, [""] * 2, [[1] * 8, [1] * 3], max_length=10, share=0.4)
    [-0.5, 0.0]
    """
    return [overlong(len(ids), max_length=max_length, share=share, penalty=penalty) for ids in completion_ids]


def overlong(length: int, *, max_length: int, share: float, penalty: float) -> float:
    """0 before the last `share` of `max_length`, then down to `-penalty` in a straight line."""
    zone = share * max_length
    _positive("share * max_length", zone)
    over = min(1.0, max(0.0, (length - (max_length - zone)) / zone))
    return -penalty * over if over else 0.0


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be more than 0: set it in the reward's arguments")
