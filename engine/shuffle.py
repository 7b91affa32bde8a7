"""The endless order in which rows are drawn."""

from __future__ import annotations

import numpy as np


class Shuffle:
    """Every epoch visits every row once, in an order of its own, keyed by (seed, epoch): whoever starts late goes on
    the same."""

    def __init__(self, *, num_rows: int, seed: int) -> None:
        self._num_rows, self._seed = num_rows, seed
        self._epoch, self._order = -1, np.arange(0)

    def row(self, draw: int) -> int:
        """The number of the row at this position of the sequence."""
        epoch, position = divmod(draw, self._num_rows)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self._seed, epoch)).permutation(self._num_rows)
        return int(self._order[position])
