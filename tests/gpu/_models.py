"""Models with random weights, the groups that they learn from, and how many operations that takes.

Suffixes: `B` rows, `T` token positions of a response.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from engine.sizes import ModelSizes
from tests.bench._made_up import group_of, rows_of, seen_pairs
from workers.batches import collate
from workers.families import families_of
from workers.records import Batch, Group

SEED = 0
FIRST_TOKEN = 5
"""Those below are special."""
LENGTHS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.25, 1.5, 1.75)
"""Of a group's responses, over their mean: siblings of one length would need no padding."""

QWEN2 = {
    "Qwen2.5-0.5B": ModelSizes(
        layers=24, hidden=896, intermediate=4864, heads=14, key_value_heads=2, head_dimension=64, vocabulary=151_936,
        tied_embeddings=True, positions=32_768, parameters=494_032_768,
    ),
    "Qwen2.5-1.5B": ModelSizes(
        layers=28, hidden=1536, intermediate=8960, heads=12, key_value_heads=2, head_dimension=128,
        vocabulary=151_936, tied_embeddings=True, positions=32_768, parameters=1_543_714_304,
    ),
    "tiny": ModelSizes(
        layers=2, hidden=64, intermediate=128, heads=4, key_value_heads=2, head_dimension=16, vocabulary=512,
        tied_embeddings=True, positions=512, parameters=107_072,
    ),
}  # fmt: skip
"""By name; `tiny` has the same parts and no use but to run what measures the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSize:
    """Tokens of a prompt, and of its responses on the average: a multiple of four."""

    prompt_tokens: int
    response_tokens: int

    @property
    def tokens(self) -> int:
        """Of the prompt once and of all responses.

        >>> GroupSize(prompt_tokens=512, response_tokens=192).tokens
        2048
        """
        return self.prompt_tokens + sum(self.lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(int(share * self.response_tokens) for share in LENGTHS)


REAL_GROUP = GroupSize(prompt_tokens=512, response_tokens=192)
TINY_GROUP = GroupSize(prompt_tokens=16, response_tokens=4)


def config_of(sizes: ModelSizes, *, spread: float = 0.02) -> PretrainedConfig:
    """`spread`: the standard deviation of random weights."""
    return AutoConfig.for_model(
        "qwen2",
        num_hidden_layers=sizes.layers,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.positions,
        tie_word_embeddings=sizes.tied_embeddings,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        initializer_range=spread,
        use_cache=False,
    )


def model_of(sizes: ModelSizes, device: torch.device, *, spread: float = 0.02) -> PreTrainedModel:
    """In bfloat16, made where it is used."""
    torch.manual_seed(SEED)
    config = config_of(sizes, spread=spread)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").train()


def groups_of(size: GroupSize, *, groups: int, vocabulary: int) -> tuple[Group, ...]:
    """Random tokens; every one of a response was sampled by the weights at hand."""
    random = np.random.default_rng(SEED)

    def tokens(length: int) -> np.ndarray:
        return random.integers(FIRST_TOKEN, vocabulary, length)

    return tuple(
        group_of(
            tokens(size.prompt_tokens).tolist(),
            [tokens(length) for length in size.lengths],
            draw=draw,
            logprob=-math.log(vocabulary),
        )
        for draw in range(groups)
    )


def batch_of(groups: tuple[Group, ...]) -> Batch:
    return collate(rows_of(groups), groups)


def tokens_of(batch: Batch) -> int:
    """What has to be computed: every response, and every prompt once."""
    return sum(family.tokens for family in families_of(batch))


def model_flops(sizes: ModelSizes, batch: Batch) -> float:
    """Operations of a forward and backward pass, as MFU counts them: 6 x matmul parameters x tokens, and attention.

    Of the work that there is: a prompt once for all its responses, the head at response tokens alone, no padding. What
    a way computes beyond that (prompts again, padding, logits or layers a second time) is not counted, so it lowers
    that way's MFU. A token and one that it sees cost 2 operations a number of each head in the scores and 2 in the sum;
    backward costs twice what forward does.
    """
    families = families_of(batch)
    of_responses = sum(sum(family.response_tokens) for family in families)
    pairs = sum(seen_pairs(family.prompt_tokens, family.response_tokens) for family in families)
    attention = sizes.heads * sizes.head_dimension
    by_matrices = layer_parameters(sizes) * tokens_of(batch) + sizes.vocabulary * sizes.hidden * of_responses
    return 6.0 * by_matrices + 12.0 * sizes.layers * attention * pairs


def layer_parameters(sizes: ModelSizes) -> int:
    """Those that tokens are multiplied with, of all layers."""
    attention = 2 * sizes.heads * sizes.head_dimension + 2 * sizes.key_value_heads * sizes.head_dimension
    return sizes.layers * sizes.hidden * (attention + 3 * sizes.intermediate)
