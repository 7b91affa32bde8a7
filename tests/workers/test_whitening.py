"""Advantages are brought to mean 0 and variance 1 over all action tokens, on however many ranks they are."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from workers.whitening import whitened

ADVANTAGES_BT = torch.tensor(
    [[0.374433, 0.508701, 0.0, 0.0, 0.6504, 0.8], [0.272087, 0.1851, 0.2, 0.0, 0.0, 0.0]], dtype=torch.float64
)
MASK_BT = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
GOLDEN = {
    1: [[-0.224339, 0.346009, 0, 0, 0.947924, 1.583401], [-0.659093, -1.028598, -0.965305, 0, 0, 0]],
    0: [[-0.242314, 0.373733, 0, 0, 1.023875, 1.710269], [-0.711901, -1.111013, -1.042648, 0, 0, 0]],
}
every_ddof = pytest.mark.parametrize("ddof", GOLDEN)


def alone(advantages_BT: Tensor, mask_BT: Tensor, *, ddof: int = 1) -> Tensor:
    return whitened(advantages_BT, mask_BT, ddof=ddof, all_reduce=lambda total: total)


class FakeRanks:
    """Threads that sum what all of them hand in, as a collective call does."""

    def __init__(self, size: int) -> None:
        self._handed_in: list[Tensor] = [torch.empty(0)] * size
        self._everybody = threading.Barrier(size, timeout=30)
        self.calls = [0] * size

    def all_reduce(self, rank: int) -> Callable[[Tensor], Tensor]:
        def summed(own: Tensor) -> Tensor:
            self.calls[rank] += 1
            self._handed_in[rank] = own
            self._everybody.wait()
            total = torch.stack(self._handed_in).sum(dim=0)
            self._everybody.wait()
            return total

        return summed


def on_ranks(advantages_BT: Tensor, mask_BT: Tensor, *, ddof: int, rows: Sequence[Sequence[int]]) -> Tensor:
    """Whitened by one rank for each list of row numbers, and put together again."""
    ranks = FakeRanks(len(rows))

    def whiten(rank: int) -> Tensor:
        own = torch.tensor(rows[rank], dtype=torch.long)
        return whitened(advantages_BT[own], mask_BT[own], ddof=ddof, all_reduce=ranks.all_reduce(rank))

    white_BT = torch.full_like(advantages_BT, math.nan)
    with ThreadPoolExecutor(len(rows)) as pool:
        for own, part in zip(rows, pool.map(whiten, range(len(rows))), strict=True):
            white_BT[list(own)] = part
    assert len(set(ranks.calls)) == 1
    return white_BT


@every_ddof
def test_whitened_values_are_golden(ddof: int) -> None:
    expected_BT = torch.tensor(GOLDEN[ddof], dtype=torch.float64)
    # The advantages are themselves rounded to six digits, and the spread is 0.24.
    torch.testing.assert_close(alone(ADVANTAGES_BT, MASK_BT, ddof=ddof), expected_BT, rtol=0, atol=5e-6)


@every_ddof
@pytest.mark.parametrize("rows", [[[0], [], [1]], [[1, 0]], [[], [0, 1], []], [[1], [0]]])
def test_the_split_over_ranks_changes_nothing_and_a_rank_may_be_empty(ddof: int, rows: list[list[int]]) -> None:
    """Pitfall 11: the moments are of all ranks' tokens, not of each rank's own."""
    expected_BT = alone(ADVANTAGES_BT, MASK_BT, ddof=ddof)
    torch.testing.assert_close(on_ranks(ADVANTAGES_BT, MASK_BT, ddof=ddof, rows=rows), expected_BT, rtol=1e-13, atol=0)


@every_ddof
def test_the_mean_is_zero_and_the_variance_one(ddof: int) -> None:
    """Pitfall 31: the mean is taken off, and not added again."""
    generator = torch.Generator().manual_seed(5)
    advantages_BT = 3 + 7 * torch.randn(40, 9, generator=generator, dtype=torch.float64)
    mask_BT = torch.rand(40, 9, generator=generator) < 0.6
    rows = [list(range(own, 40, 3)) for own in range(3)]
    own_N = on_ranks(advantages_BT, mask_BT, ddof=ddof, rows=rows)[mask_BT].numpy()
    assert own_N.mean() == pytest.approx(0.0, abs=1e-12)
    assert own_N.var(ddof=ddof) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_junk_at_masked_positions_changes_nothing(junk: float) -> None:
    assert torch.equal(alone(ADVANTAGES_BT.masked_fill(~MASK_BT, junk), MASK_BT), alone(ADVANTAGES_BT, MASK_BT))


@every_ddof
def test_equal_advantages_are_worth_nothing_and_not_their_rounding(ddof: int) -> None:
    """Pitfall 11: E[x^2] - E[x]^2 of these is rounding alone, and its root divides."""
    for value in (0.1, 1e6 / 3):
        white_BT = alone(torch.full((5, 7), value, dtype=torch.float64), torch.ones(5, 7, dtype=torch.bool), ddof=ddof)
        assert white_BT.abs().max() < 1e-5


def test_nearly_equal_large_advantages_keep_their_spread() -> None:
    """Pitfall 11, in float32 as the trainer has them."""
    advantages_BT = torch.tensor([[10000.0, 10001.0, 10000.0, 10001.0]])
    white_BT = alone(advantages_BT, torch.ones(1, 4, dtype=torch.bool), ddof=0)
    assert white_BT.dtype == torch.float32
    np.testing.assert_allclose(white_BT, [[-1.0, 1.0, -1.0, 1.0]], rtol=1e-6)


@every_ddof
def test_fewer_than_two_tokens_are_centred_only(ddof: int) -> None:
    one_BT = torch.tensor([[False, True], [False, False]])
    assert alone(torch.tensor([[9.0, 5.0], [1.0, 2.0]]), one_BT, ddof=ddof).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert (
        alone(torch.full((2, 2), math.nan), torch.zeros(2, 2, dtype=torch.bool), ddof=ddof).tolist() == [[0.0] * 2] * 2
    )
    assert alone(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), ddof=ddof).shape == (0, 3)
