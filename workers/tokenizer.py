"""What both rollout engines must agree on about a model's tokens."""

from __future__ import annotations

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(path)


def end_token_ids(path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's and the model's own (chat models often name two)."""
    try:
        named = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # a folder without a generation config
        named = AutoConfig.from_pretrained(path).eos_token_id
    ids = named if isinstance(named, list) else [named]
    return tuple(sorted({int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}))
