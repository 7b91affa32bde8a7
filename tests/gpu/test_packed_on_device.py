"""Packed rows are padded rows where they are computed: on a GPU by PyTorch's kernel, on a CPU by calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.gpu._models import (
    FIRST_TOKEN,
    QWEN2,
    TINY_GROUP,
    GroupSize,
    batch_of,
    config_of,
    groups_of,
    layer_parameters,
    model_flops,
    model_of,
    tokens_of,
)
from tests.gpu._packed import differences, packed_logprobs, padded_pieces
from workers.families import Family
from workers.packing import segment_attention
from workers.segments import Segments

BOUND = 0.05
"""Of bfloat16, as in tests/workers/test_segments.py: log-probs absolute, gradients over the largest."""
HEADS, KEY_HEADS, SIZE = 4, 2, 64


@pytest.fixture
def by_kernel_alone(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU nothing falls back to what a CPU does."""

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("the kernel was not taken")

    if device.type == "cuda":
        monkeypatch.setattr(Segments, "by_calls", refuse)


@pytest.mark.usefixtures("by_kernel_alone")
@pytest.mark.parametrize("groups", [1, 3])
def test_packed_rows_say_and_teach_what_padded_rows_do(device: torch.device, groups: int) -> None:
    sizes = QWEN2["tiny"]
    # Five times the usual spread: attention is felt.
    model = model_of(sizes, device, spread=0.1)
    made = groups_of(GroupSize(prompt_tokens=40, response_tokens=16), groups=groups, vocabulary=sizes.vocabulary)
    logprobs, gradients = differences(model, batch_of(made))
    assert logprobs <= BOUND
    assert gradients <= BOUND


def test_the_bound_would_notice_another_prompt(device: torch.device) -> None:
    model = model_of(QWEN2["tiny"], device, spread=0.1)
    batch = batch_of(groups_of(TINY_GROUP, groups=1, vocabulary=QWEN2["tiny"].vocabulary))
    differences(model, batch)
    before_N = packed_logprobs(model, batch).detach()
    for tokens in batch.context:
        tokens[0] = FIRST_TOKEN + (tokens[0] + 1) % 100
    assert (packed_logprobs(model, batch).detach() - before_N).abs().max() > BOUND


FAMILIES = (
    Family(rows=(0,), prompt_tokens=2, response_tokens=(3,)),
    Family(rows=(1, 2, 3), prompt_tokens=20, response_tokens=(5, 1, 9)),
    Family(rows=(4, 5), prompt_tokens=150, response_tokens=(130, 40)),
)


@pytest.mark.usefixtures("by_kernel_alone")
@pytest.mark.parametrize("window", [None, 2, 8, 64], ids=lambda window: f"window {window}")
def test_attention_and_its_gradients_are_those_of_every_pair_that_may_see_each_other(
    device: torch.device, window: int | None
) -> None:
    """In bfloat16, beside float32 with a mask that is written pair by pair."""
    random = torch.Generator().manual_seed(0)
    tokens = sum(family.tokens for family in FAMILIES)
    shapes = [(1, heads, tokens, SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)] + [(1, tokens, HEADS, SIZE)]
    *inputs, pull = (torch.randn(shape, generator=random).bfloat16().to(device) for shape in shapes)
    inputs = [tensor.requires_grad_(True) for tensor in inputs]
    module = torch.nn.Module()
    module.num_key_value_groups = HEADS // KEY_HEADS
    how = {"segments": Segments(FAMILIES, device), "scaling": SIZE**-0.5, "sliding_window": window}
    said, _ = segment_attention(module, *inputs, None, **how)
    learned = torch.autograd.grad((said.float() * pull.float()).sum(), inputs)

    exact = [tensor.detach().float().requires_grad_(True) for tensor in inputs]
    expected = attended(*exact, may_see(window).to(device))
    expected_learned = torch.autograd.grad((expected * pull.float()).sum(), exact)
    torch.testing.assert_close(said.float(), expected, atol=2e-2, rtol=2e-2)
    for own, other in zip(learned, expected_learned, strict=True):
        assert (own.float() - other).abs().max() <= BOUND * other.abs().max()
    causal = attended(*exact, torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril())
    assert (causal - expected).abs().max() > 0.5, "rows that see each other would be noticed"


def may_see(window: int | None) -> Tensor:
    """[queries, keys] bool, pair by pair: its own row and the prompt, nothing later, nothing beyond the window."""
    who = []
    for number, family in enumerate(FAMILIES):
        who += [(number, 0, at) for at in range(family.prompt_tokens)]
        for row, tokens in enumerate(family.response_tokens, start=1):
            who += [(number, row, family.prompt_tokens + at) for at in range(tokens)]
    return torch.tensor(
        [
            [
                own == family and of in (0, row) and where <= at and (window is None or at - where < window)
                for own, of, where in who
            ]
            for family, row, at in who
        ]
    )


def attended(query: Tensor, key: Tensor, value: Tensor, sees: Tensor) -> Tensor:
    """[1, tokens, heads, size], by the book."""
    key, value = (tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(-1, -2) * SIZE**-0.5).masked_fill(~sees, -torch.inf)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


# ----------------------------------------------------------------------------- what figures are of


@pytest.mark.parametrize("name", list(QWEN2))
def test_models_have_the_sizes_that_their_operations_are_counted_by(name: str) -> None:
    sizes = QWEN2[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(sizes))
    assert model.num_parameters() == sizes.parameters
    linear = [module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)]
    assert layer_parameters(sizes) == sum(module.weight.numel() for module in linear)
    assert model.get_output_embeddings().weight.shape == (sizes.vocabulary, sizes.hidden)


def test_operations_are_those_of_each_matrix_and_of_each_pair() -> None:
    sizes, size = QWEN2["tiny"], GroupSize(prompt_tokens=8, response_tokens=4)
    batch = batch_of(groups_of(size, groups=2, vocabulary=sizes.vocabulary))
    tokens, responses = 2 * (8 + 8 * 4), 2 * 8 * 4
    # A response's token sees the prompt, its own row so far and itself.
    pairs = 2 * (sum(range(1, 9)) + sum(8 + at for length in size.lengths for at in range(1, length + 1)))
    forward = 2 * (layer_parameters(sizes) * tokens + 512 * 64 * responses) + 2 * 2 * pairs * 4 * 16 * sizes.layers
    assert tokens_of(batch) == tokens
    assert model_flops(sizes, batch) == 3 * forward


def test_padded_passes_have_the_budget_of_the_packed_one() -> None:
    batch = batch_of(groups_of(TINY_GROUP, groups=3, vocabulary=64))
    pieces = padded_pieces(batch, tokens_of(batch))
    assert sum(map(len, pieces)) == len(batch) == 24
    assert all(len(piece) * max(piece.lengths()) <= tokens_of(batch) for piece in pieces)
