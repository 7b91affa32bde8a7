"""A language model's head as the terms of its logits, also with what PEFT has put around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.adapters import ADAPTER, AdapterError
from workers.linear_logprobs import Term


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """That `head_terms` can read a language model's head; a model without one passes. Raises AdapterError."""
    head = model.get_output_embeddings()
    if head is not None:
        like = next(head.parameters())
        head_terms(head, like.new_zeros(0, model.config.get_text_config().hidden_size))


def head_terms(head: nn.Module, hidden_NH: Tensor) -> tuple[list[Term], Tensor | None]:
    """Terms and bias whose sum is `head(hidden_NH)`, and which are learned as the head is.

    Raises AdapterError for a head that is no sum of products.
    """
    if type(head) is nn.Linear:
        return [Term(read_NK=hidden_NH, weight_VK=head.weight)], head.bias
    if hasattr(head, "modules_to_save"):
        return head_terms(head.original_module if head.disable_adapters else head.modules_to_save[ADAPTER], hidden_NH)
    base = getattr(head, "base_layer", None)
    if base is not None and head.disable_adapters:
        return head_terms(base, hidden_NH)
    if ADAPTER in getattr(head, "oft_R", {}):
        rotation = head.oft_R[ADAPTER]
        return head_terms(base, rotation(hidden_NH.to(rotation.weight.dtype)).to(hidden_NH.dtype))
    if ADAPTER in getattr(head, "lora_A", {}) and not head.lora_variant:
        terms, bias = head_terms(base, hidden_NH)
        down, up = head.lora_A[ADAPTER], head.lora_B[ADAPTER]
        read_NR = down(head.lora_dropout[ADAPTER](hidden_NH.to(down.weight.dtype))) * head.scaling[ADAPTER]
        own_bias = bias if up.bias is None else bias + up.bias * head.scaling[ADAPTER]
        return [*terms, Term(read_NK=read_NR, weight_VK=up.weight)], own_bias
    raise AdapterError(
        f"the head is a {type(head).__module__}.{type(head).__name__}, whose logits are no sum of products; where an "
        "adapter made it so (DoRA on lm_head), go on from one that leaves lm_head alone, or set "
        "tuning.continue_last=false, which merges it and starts a new one"
    )
