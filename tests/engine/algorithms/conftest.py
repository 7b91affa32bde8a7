"""The batches that the loss tests read. Suffixes: `B` responses, `T` token positions of a response."""

from __future__ import annotations

import pytest
import torch
from loss_rows import Rows, golden_rows
from torch import Tensor


@pytest.fixture
def clip_rows() -> Rows:
    """The golden example of the clipped surrogate."""
    return golden_rows([[-0.9, -1.4, -0.9], [-0.1, -2.6, -2.0]])


@pytest.fixture
def dual_rows() -> Rows:
    """The golden example of the dual clip."""
    return golden_rows([[-0.9, -1.4, -0.9], [1.2, -0.7, -4.0]])


@pytest.fixture
def random_rows() -> Rows:
    """Six responses of 4, 1, 3, 4, 2 and 4 tokens, the last with a masked tool span in the middle."""
    generator = torch.Generator().manual_seed(20240203)

    def draw() -> Tensor:
        return torch.randn(6, 4, generator=generator, dtype=torch.float64)

    old_BT = -draw().abs() - 0.1
    mask_BT = torch.arange(4) < torch.tensor([4, 1, 3, 4, 2, 4]).unsqueeze(-1)
    mask_BT[5, 1:3] = False
    return Rows(
        new_BT=old_BT + 0.3 * draw(),
        old_BT=old_BT,
        reference_BT=old_BT + 0.5 * draw(),
        advantages_BT=draw()[:, :1].expand(6, 4).clone(),
        entropy_BT=draw().abs(),
        mask_BT=mask_BT,
    )
