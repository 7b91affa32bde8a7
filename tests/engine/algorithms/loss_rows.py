"""Small batches for the loss tests, in float64. Suffixes: `B` responses, `T` token positions of a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.records import Batch, Credit, Experience, ModelOutputs, TokenLogprobs, Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a loss reads, as plain tensors that a test may cut, permute, pad and spoil."""

    new_BT: Tensor
    old_BT: Tensor
    reference_BT: Tensor
    advantages_BT: Tensor
    entropy_BT: Tensor
    mask_BT: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__slots__}

    def at(self, rows: Sequence[int]) -> Rows:
        index = torch.tensor(rows, dtype=torch.long)
        return Rows(**{name: tensor[index] for name, tensor in self.tensors().items()})

    def padded(self, width: int, value: float) -> Rows:
        """`width` more columns of `value`, masked."""
        pad = torch.nn.functional.pad
        tensors = {name: pad(tensor, (0, width), value=value) for name, tensor in self.tensors().items()}
        return Rows(**(tensors | {"mask_BT": pad(self.mask_BT, (0, width), value=False)}))

    def spoiled(self, value: float) -> Rows:
        """`value` wherever there is no action token."""
        tensors = {name: tensor.masked_fill(~self.mask_BT, value) for name, tensor in self.tensors().items()}
        return Rows(**(tensors | {"mask_BT": self.mask_BT}))

    def batch(self) -> Batch:
        size, width = self.mask_BT.shape
        return Batch(
            context=tuple(torch.zeros(2 + width, dtype=torch.long) for _ in range(size)),
            prompt_lengths=(2,) * size,
            token_ids_BT=torch.zeros(size, width, dtype=torch.long),
            mask_BT=self.mask_BT,
            rollout_logprobs_BT=self.old_BT,
            advantage_B=torch.zeros(size, dtype=self.new_BT.dtype),
        )

    def policy(self) -> TokenLogprobs:
        return TokenLogprobs(logprobs_BT=self.new_BT, entropy_BT=self.entropy_BT)

    def experience(self) -> Experience:
        tensors = {"old_logprobs_BT": self.old_BT, "reference_logprobs_BT": self.reference_BT}
        return Experience(
            batch=self.batch(),
            outputs=ModelOutputs(tensors=tensors),
            credit=Credit(advantages_BT=self.advantages_BT),
        )

    def totals(self, *, horizon: int) -> Totals:
        return Totals(
            tokens=int(self.mask_BT.sum()),
            sequences=int(self.mask_BT.any(dim=-1).sum()),
            prompts=1,
            horizon=horizon,
        )


def golden_rows(new: list[list[float]]) -> Rows:
    """Two responses of 3 and 2 tokens with advantages +1 and -1; the last position of the second is padding."""
    new_BT = torch.tensor(new, dtype=torch.float64)
    return Rows(
        new_BT=new_BT,
        old_BT=torch.tensor([[-1.0, -2.0, -0.5], [-0.3, -1.2, -4.0]], dtype=torch.float64),
        reference_BT=new_BT.clone(),
        advantages_BT=torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]], dtype=torch.float64),
        entropy_BT=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 100.0]], dtype=torch.float64),
        mask_BT=torch.tensor([[True, True, True], [True, True, False]]),
    )
