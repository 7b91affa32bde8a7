"""NEFTune (2310.05914): what a model learns from is blurred a little, so that it learns less by heart.

The noise of a row depends on the run's seed, the update and the row alone: however rows are dealt out, cut and laid
out, each gets its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def noise_seed(*key: object) -> int:
    """A 63-bit hash of whatever tells a row of an update apart.

    >>> noise_seed(0, 3, "dpo-1", 0) == noise_seed(0, 3, "dpo-1", 0) != noise_seed(0, 3, "dpo-1", 1)
    True
    """
    text = "/".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingNoise:
    """What is added to the embeddings of some rows."""

    alpha: float
    seeds: tuple[int, ...]
    """One a row."""

    def select(self, rows: Sequence[int]) -> EmbeddingNoise:
        return replace(self, seeds=tuple(self.seeds[row] for row in rows))

    def of_row(self, row: int, *, length: int, width: int) -> Tensor:
        """[length, width] float32, uniform, of an expected norm of alpha / sqrt(3), whatever the length and width."""
        uniform_LH = torch.empty(length, width).uniform_(
            -1.0, 1.0, generator=torch.Generator().manual_seed(self.seeds[row])
        )
        return uniform_LH * (self.alpha / (length * width) ** 0.5)
