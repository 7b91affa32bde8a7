"""What a forward pass keeps for the backward pass, and which layers are computed again instead, within a budget.

Import-light: what a run will keep is told before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_bytes_per_token(*, hidden: int, queries: int, keys: int, intermediate: int, number_bytes: int) -> float:
    """What one layer keeps: of the norms, of attention without its scores (a fused kernel), and of the gated
    feed-forward block. `queries`, `keys`: their widths, all heads together."""
    return number_bytes * (8.0 * hidden + 3 * queries + 2 * keys + 4 * intermediate)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersOfPass:
    """What the layers of a model keep of one pass, whole or but for their input.

    >>> four = LayersOfPass(layers=4, tokens=10, layer_bytes=5.0, input_bytes=1.0)
    >>> [four.kept_bytes(again=again) for again in (0, 1, 3, 4)]
    [200.0, 160.0, 80.0, 90.0]
    >>> [four.again_within(budget_bytes) for budget_bytes in (200, 199, 80, 1)]
    [0, 1, 3, 4]
    """

    layers: int
    tokens: int
    layer_bytes: float
    """Of a token, as the next one."""
    input_bytes: float

    def kept_bytes(self, *, again: int) -> float:
        """Where the first `again` layers keep their input alone (2205.05198, section 5).

        They are the last that the backward pass comes to, one whole at a time, when all that the others kept is gone.
        """
        forward = (self.layers - again) * self.layer_bytes + again * self.input_bytes
        backward = again * self.input_bytes + self.layer_bytes if again else 0.0
        return self.tokens * max(forward, backward)

    def again_within(self, budget_bytes: float) -> int:
        """The least that must be computed again to keep no more; all of them where even that keeps more."""
        enough = (again for again in range(self.layers) if self.kept_bytes(again=again) <= budget_bytes)
        return next(enough, self.layers)


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
    of_pass = LayersOfPass(layers=len(layers), tokens=tokens, layer_bytes=of_layer, input_bytes=number_bytes * hidden)
    again = of_pass.again_within(budget_gib * 2**30)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number < again
    return again
