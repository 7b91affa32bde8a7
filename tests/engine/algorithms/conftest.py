"""The batches that the loss tests read. Suffixes: `B` responses, `T` token positions of a response."""

from __future__ import annotations

import pytest
import torch
from loss_rows import Rows, golden_rows, rows_of
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
    """Six responses to three prompts, of 6, 1, 4, 4, 2 and 4 action tokens.

    The fourth ends with a masked tool span, and the last has one in its middle. Engine and trainer disagree.
    """
    generator = torch.Generator().manual_seed(20240203)

    def draw(width: int = 6) -> Tensor:
        return torch.randn(6, width, generator=generator, dtype=torch.float64)

    mask_BT = torch.arange(6) < torch.tensor([6, 1, 4, 4, 2, 6]).unsqueeze(-1)
    mask_BT[5, 2:4] = False
    old_BT = -draw().abs() - 0.1
    return rows_of(
        mask_BT,
        new_BT=old_BT + 0.3 * draw(),
        old_BT=old_BT,
        rollout_BT=old_BT + 0.2 * draw(),
        reference_BT=old_BT + 0.5 * draw(),
        entropy_BT=draw().abs(),
        values_BT=draw(),
        old_values_BT=draw(),
        advantages_BT=draw(1).expand(6, 6).clone(),
        returns_BT=draw(),
        advantage_B=draw(1).squeeze(-1),
        reward_B=draw(1).squeeze(-1),
        prompt_B=torch.tensor([0, 0, 1, 1, 1, 2]),
    )


@pytest.fixture
def judged_rows() -> Rows:
    """The golden example of outcomes: seven responses to three prompts, rewarded at their last token.

    Between policy and reference lie the divergences per token of the example with a charged reward; 9 is junk.
    """
    length_B = torch.tensor([5, 3, 4, 2, 5, 3, 4])
    divergence_BT = torch.tensor(
        [
            [0.1, -0.2, 0.3, 0.0, 0.2],
            [0.4, 0.1, 0.0, 9.0, 9.0],
            [0.2, 0.2, -0.1, 0.1, 9.0],
            [0.0, 0.5, 9.0, 9.0, 9.0],
            [0.1, 0.1, 0.1, 0.1, 0.1],
            [0.3, -0.1, 0.2, 9.0, 9.0],
            [0.0, 0.0, 0.4, 0.2, 9.0],
        ],
        dtype=torch.float64,
    )
    return rows_of(
        torch.arange(5) < length_B.unsqueeze(-1),
        old_BT=divergence_BT,
        reference_BT=torch.zeros(7, 5, dtype=torch.float64),
        reward_B=torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.3], dtype=torch.float64),
        prompt_B=torch.tensor([0, 0, 0, 0, 1, 1, 2]),
    )
