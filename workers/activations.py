"""What a forward pass keeps for the backward pass, and which layers are computed again instead, within a budget.

Import-light: what a run will keep is told before it starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_bytes_per_token(*, hidden: int, queries: int, keys: int, intermediate: int, number_bytes: int) -> float:
    """What one layer keeps: of the norms, of attention without its scores (a fused kernel), and of the gated
    feed-forward block. `queries`, `keys`: their widths, all heads together."""
    return number_bytes * (8.0 * hidden + 3 * queries + 2 * keys + 4 * intermediate)


def kept_bytes(*, layers: int, again: int, tokens: int, layer_bytes: float, input_bytes: float) -> float:
    """Of a pass whose first `again` layers keep their input alone (2205.05198, section 5).

    They are the last that the backward pass comes to, one whole at a time, when all that the others kept is gone.

    >>> [kept_bytes(layers=4, again=again, tokens=10, layer_bytes=5.0, input_bytes=1.0) for again in (0, 1, 3, 4)]
    [200.0, 160.0, 80.0, 90.0]
    """
    forward = (layers - again) * layer_bytes + again * input_bytes
    backward = again * input_bytes + layer_bytes if again else 0.0
    return tokens * max(forward, backward)


def layers_again(*, layers: int, tokens: int, layer_bytes: float, input_bytes: float, budget_bytes: float) -> int:
    """The least that must be computed again to keep no more than the budget; all of them where even that keeps more.

    >>> [layers_again(layers=4, tokens=10, layer_bytes=5.0, input_bytes=1.0, budget_bytes=b) for b in (200, 199, 80, 1)]
    [0, 1, 3, 4]
    """
    for again in range(layers):
        kept = kept_bytes(layers=layers, again=again, tokens=tokens, layer_bytes=layer_bytes, input_bytes=input_bytes)
        if kept <= budget_bytes:
            return again
    return layers


def keep_within(model: PreTrainedModel, *, budget_gib: float, tokens: int) -> int:
    """Have a model's first layers computed again in the backward pass, as many as `tokens` in one pass ask for.

    The same on every rank: gathering weights once more (ZeRO-3) is a collective call. Returns how many there are.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    config = model.config.get_text_config()
    hidden, heads, number_bytes = config.hidden_size, config.num_attention_heads, model.dtype.itemsize
    head_size = getattr(config, "head_dim", None) or hidden // heads
    of_layer = layer_bytes_per_token(
        hidden=hidden,
        queries=heads * head_size,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * hidden,
        number_bytes=number_bytes,
    )
    again = layers_again(
        layers=len(layers),
        tokens=tokens,
        layer_bytes=of_layer,
        input_bytes=number_bytes * hidden,
        budget_bytes=budget_gib * 2**30,
    )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number < again
    return again
