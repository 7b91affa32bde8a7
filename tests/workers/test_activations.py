"""A budget for activations: as few layers as it takes are computed again, and nothing that is learned changes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from tests.saved_tensors import saved_bytes
from workers.activations import LayersOfPass, keep_within, layer_bytes_per_token

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KEY_HEADS, HEAD_SIZE = 6, 64, 256, 4, 2, 16
ROWS, LENGTH = 2, 64
TOKENS = ROWS * LENGTH
LAYER_BYTES = 4 * (8 * 64 + 3 * 64 + 2 * 32 + 4 * 256)
"""By hand, of a token, in float32: what `layer_bytes_per_token` says."""
INPUT_BYTES = 4 * 64


def model() -> PreTrainedModel:
    torch.manual_seed(3)
    config = Qwen2Config(
        hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS, vocab_size=50,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()


def gib_for(again: int) -> float:
    """A budget that as many layers again just meet."""
    return TOKENS * ((LAYERS - again) * LAYER_BYTES + again * INPUT_BYTES) / 2**30


def learned(one: PreTrainedModel) -> list[torch.Tensor]:
    tokens = torch.arange(TOKENS).view(ROWS, LENGTH) % 50
    one(input_ids=tokens, use_cache=False).logits.square().mean().backward()
    return [parameter.grad for parameter in one.parameters()]


def test_what_a_layer_keeps_is_the_sum_of_its_parts() -> None:
    told = layer_bytes_per_token(hidden=64, queries=64, keys=32, intermediate=256, number_bytes=4)
    assert told == LAYER_BYTES


@pytest.mark.parametrize("again", range(LAYERS - 1))
def test_no_more_layers_are_computed_again_than_the_budget_asks_for(again: int) -> None:
    assert keep_within(model(), budget_gib=1.0001 * gib_for(again), tokens=TOKENS) == again
    assert keep_within(model(), budget_gib=0.9999 * gib_for(again), tokens=TOKENS) == again + 1


def test_a_budget_below_one_layer_computes_all_of_them_again() -> None:
    assert keep_within(model(), budget_gib=1e-9, tokens=TOKENS) == LAYERS
    one = LayersOfPass(layers=LAYERS, tokens=1, layer_bytes=LAYER_BYTES, input_bytes=INPUT_BYTES)
    assert one.kept_bytes(again=LAYERS) == LAYERS * INPUT_BYTES + LAYER_BYTES, "one of them at a time, whole"


def test_autograd_keeps_what_the_budget_allows_within_a_quarter() -> None:
    of_ends = saved_bytes(model(), shape=(ROWS, LENGTH)) - LAYERS * TOKENS * LAYER_BYTES
    for again in (0, 2, 4):
        one = model()
        keep_within(one, budget_gib=1.0001 * gib_for(again), tokens=TOKENS)
        # What the embedding and the last norm keep is none of the layers'.
        assert saved_bytes(one, shape=(ROWS, LENGTH)) - of_ends == pytest.approx(gib_for(again) * 2**30, rel=0.25)
    assert abs(of_ends) < 0.25 * LAYERS * TOKENS * LAYER_BYTES


@pytest.mark.parametrize("again", [1, 3, LAYERS])
def test_no_bit_of_a_gradient_changes(again: int) -> None:
    one = model()
    assert keep_within(one, budget_gib=1.0001 * gib_for(again) if again < LAYERS else 1e-9, tokens=TOKENS) == again
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for layer in one.model.layers:
        layer.mlp.register_forward_pre_hook(count)
    gradients = learned(one)
    assert calls == LAYERS + again
    for without, with_it in zip(learned(model()), gradients, strict=True):
        assert torch.equal(without, with_it)
