"""What autograd keeps of a forward pass."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def saved_bytes(model: PreTrainedModel, *, shape: tuple[int, int]) -> int:
    """When the body has read so many rows of so many tokens. Weights are left out; what is kept twice counts once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Held until it is counted: what is freed could lend its address to another tensor.
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        said = model.base_model(input_ids=torch.zeros(shape, dtype=torch.long), use_cache=False)
    assert said.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in kept.values())
