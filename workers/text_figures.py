"""Figures of one response that only the place that holds its text can make: whether it repeats itself, and a hash."""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np

PIECE = 4
"""Tokens in a row that make up a piece; tokens rather than words, which some languages and all digits lack."""
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, and without pattern: pieces that differ have, practically, different keys."""
HALF = np.uint64(32)
"""Of a key's bits: two tokens fit into one."""


def repetition(token_ids: np.ndarray) -> float:
    """Share of the pieces of a response that stand in it already, from 0 to nearly 1. `token_ids`: [T].

    >>> repetition(np.array([7, 7, 7, 7, 7, 7, 7]))
    0.75
    >>> repetition(np.arange(100)), repetition(np.array([7, 7, 7]))
    (0.0, 0.0)
    """
    count = len(token_ids) - PIECE + 1
    if count < 2:
        return 0.0
    tokens = token_ids.astype(np.uint64)
    pairs = (tokens[:-1] << HALF) | tokens[1:]
    keys = pairs[:count] * MULTIPLIER + pairs[2:]
    keys.sort()
    return int(np.count_nonzero(keys[1:] == keys[:-1])) / count


def digest(text: str) -> int:
    """A signed 64-bit hash, the same for texts that differ in case, white space or the form of a character alone.

    >>> digest(" The  answer\\n") == digest("the answer") != digest("the answers")
    True
    """
    normalised = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    # A response may hold half of a surrogate pair.
    hashed = hashlib.blake2b(normalised.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(hashed, "little", signed=True)
