"""Packed rows are as if alone: what is said of them, and what is learned from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import toy_groups, toy_rows
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from workers.batches import collate
from workers.config import ModelConfig
from workers.model import (
    Scorer,
    TextScorer,
    TokenScorer,
    ValueScorer,
    inputs_for,
    load_language_model,
    score_texts,
    score_tokens,
    score_values,
)
from workers.records import Batch
from workers.segments import CannotPack, attend_by_segment, packed, segment_attention

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 104, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
WINDOW = {"sliding_window": 4}
"""Shorter than most of the rows."""
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "mistral": WINDOW, "gemma3_text": WINDOW, "phi3": {}, "gpt_neox": {},
    # Positions that are learned, not rotated.
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}  # fmt: skip


def build(kind: str, auto: Any = AutoModelForCausalLM, *, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **{**SIZES, **ARCHITECTURES.get(kind, {})}, num_labels=1)
    for name in vars(config):
        if name.endswith("dropout") or name.endswith("_pdrop"):
            setattr(config, name, 0.0)
    torch.manual_seed(4)
    model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    return model.train()


def ragged_batch() -> Batch:
    return collate(toy_rows((0, 1, 2)), toy_groups())


def of_tokens(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    return score_tokens(TokenScorer(model), batch, temperature=0.7, device=CPU).logprobs_BT


def of_values(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    return score_values(ValueScorer(model), batch, device=CPU)


def of_texts(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    return score_texts(TextScorer(model), batch, device=CPU)


Ask = Callable[[PreTrainedModel, Batch], torch.Tensor]


def said_and_learned(model: PreTrainedModel, ask: Ask) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """An answer, and the gradients of something that weighs every number of it differently."""
    model.zero_grad()
    said = ask(model, ragged_batch())
    (said * torch.arange(1.0, said.numel() + 1.0).view(said.shape).sin()).sum().backward()
    return said.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# ----------------------------------------------------------------------------- packed and padded


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize(
    ("auto", "ask"),
    [
        (AutoModelForCausalLM, of_tokens),
        (AutoModelForSequenceClassification, of_values),
        (AutoModelForSequenceClassification, of_texts),
    ],
    ids=["tokens", "values", "texts"],
)
def test_packed_rows_say_and_teach_what_padded_rows_do(kind: str, auto: Any, ask: Ask) -> None:
    model = build(kind, auto)
    padded_said, padded_learned = said_and_learned(model, ask)
    attend_by_segment(model)
    said, learned = said_and_learned(model, ask)
    assert said.std() > 1e-3
    # Gemma computes part of its backward pass in float32.
    bound = 1e-6 if kind.startswith("gemma") else 1e-12
    torch.testing.assert_close(said, padded_said, atol=1e-12, rtol=1e-12)
    assert learned.keys() == padded_learned.keys()
    largest = max(gradient.abs().max() for gradient in padded_learned.values())
    for name, gradient in learned.items():
        assert (gradient - padded_learned[name]).abs().max() <= bound * largest, name


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_is_padded_in_the_arithmetic_of_training(dtype: torch.dtype, bound: float, checkpointing: bool) -> None:
    model = build("qwen2", dtype=dtype)
    padded_said, padded_learned = said_and_learned(model, of_tokens)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    attend_by_segment(model)
    said, learned = said_and_learned(model, of_tokens)
    torch.testing.assert_close(said, padded_said, atol=bound, rtol=0.0)
    largest = max(gradient.abs().max() for gradient in padded_learned.values())
    for name, gradient in learned.items():
        assert (gradient - padded_learned[name]).abs().max() <= bound * largest, name


def test_a_window_is_counted_from_the_token_and_ends_at_the_segments_start() -> None:
    model, unlimited = build("mistral"), build("llama")
    unlimited.load_state_dict(model.state_dict())
    narrow = [of_tokens(model, ragged_batch())]
    attend_by_segment(model)
    attend_by_segment(unlimited)
    narrow.append(of_tokens(model, ragged_batch()))
    torch.testing.assert_close(*narrow, atol=1e-12, rtol=1e-12)
    assert (narrow[1] - of_tokens(unlimited, ragged_batch())).abs().max() > 1e-2, "the window is felt"


def test_an_exported_model_knows_nothing_of_how_it_was_trained(folder: str, tmp_path: Path) -> None:
    model = load_language_model(ModelConfig(path=folder), seed=0)
    attend_by_segment(model)
    model.save_pretrained(tmp_path)
    assert "segments" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


# ----------------------------------------------------------------------------- contamination


def one_changed(batch: Batch, row: int) -> tuple[Batch, list[int]]:
    """Other tokens in one row; and all other rows."""
    context, tokens_BT = list(batch.context), batch.token_ids_BT.clone()
    context[row], tokens_BT[row] = (context[row] + 17) % 100, (tokens_BT[row] + 17) % 100
    others = [other for other in range(len(batch)) if other != row]
    return replace(batch, context=tuple(context), token_ids_BT=tokens_BT), others


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_tokens_in_one_segment_change_no_bit_of_the_others(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype=dtype)
    attend_by_segment(model)
    batch = ragged_batch()
    before = of_tokens(model, batch)
    for row in (0, 5):
        changed, others = one_changed(batch, row)
        after = of_tokens(model, changed)
        assert torch.equal(after[others], before[others])
        assert (after[row] - before[row]).abs().max() > 1e-3


def test_a_gradient_of_one_segment_reaches_no_embedding_of_another() -> None:
    model = build("llama")
    attend_by_segment(model)
    rows = [torch.arange(5, 12), torch.arange(40, 49)]
    hidden_1SH = model.base_model(**packed(rows, CPU), use_cache=False).last_hidden_state
    hidden_1SH[0, len(rows[0]) :].sum().backward()
    touched = model.get_input_embeddings().weight.grad.abs().sum(dim=-1).nonzero().flatten()
    assert touched.tolist() == rows[1].tolist()


@pytest.mark.parametrize(
    "naive",
    [
        pytest.param({"use_cache": True}, id="position ids alone"),
        pytest.param({"attention_mask": 1, "use_cache": False}, id="a mask of ones"),
    ],
)
def test_the_comparison_would_notice_what_others_have_called_packing(naive: dict[str, Any]) -> None:
    model, rows = build("llama", dtype=torch.float32), [torch.arange(5, 12), torch.arange(40, 49)]
    text = {name: value for name, value in packed(rows, CPU).items() if name in ("input_ids", "position_ids")}
    if "attention_mask" in naive:
        naive = {**naive, "attention_mask": torch.ones_like(text["input_ids"])}
    with torch.no_grad():
        alone_TV = model(input_ids=rows[1][None]).logits[0]
        contaminated_TV = model(**text, **naive).logits[0, len(rows[0]) :]
        attend_by_segment(model)
        exact_TV = model(**packed(rows, CPU), use_cache=False).logits[0, len(rows[0]) :]
    assert (contaminated_TV - alone_TV).abs().max() > 0.05
    torch.testing.assert_close(exact_TV, alone_TV, atol=1e-6, rtol=1e-6)


# ----------------------------------------------------------------------------- where things lie


ROWS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6)
"""Lengths of a prompt and a response."""


@given(ROWS, st.booleans())
@settings(deadline=None)
def test_every_token_is_predicted_from_its_own_row_by_the_token_before_it(
    rows: list[tuple[int, int]], packing: bool
) -> None:
    """So the first token of a segment is never trained by the last position of the one before."""
    batch = rows_of(rows)
    inputs = inputs_for(batch, device=CPU, packing=packing)
    flat = inputs.text["input_ids"].flatten()
    assert (flat[inputs.predictor_N + 1] == inputs.target_N).all()
    # Each token's id is 100 x its row + its position.
    assert (flat[inputs.predictor_N] // 100 == inputs.row_N).all()
    assert (flat[inputs.predictor_N] + 1 == inputs.target_N).all()
    assert (flat[inputs.last_B]).tolist() == [100 * row + sum(lengths) - 1 for row, lengths in enumerate(rows)]
    if packing:
        assert inputs.text["input_ids"].shape == (1, sum(map(sum, rows))), "no token of padding"
        assert inputs.text["position_ids"].flatten().tolist() == (flat % 100).tolist()
        assert inputs.text["cu_seq_lens_q"].diff().tolist() == [sum(lengths) for lengths in rows]


def rows_of(rows: Sequence[tuple[int, int]]) -> Batch:
    context = tuple(torch.arange(sum(lengths)) + 100 * row for row, lengths in enumerate(rows))
    responses = [tokens[prompt:] for tokens, (prompt, _) in zip(context, rows, strict=True)]
    tokens_BT = torch.nn.utils.rnn.pad_sequence(responses, batch_first=True)
    nothing_BT = torch.zeros(tokens_BT.shape)
    return Batch(
        context=context, prompt_lengths=tuple(prompt for prompt, _ in rows), token_ids_BT=tokens_BT,
        mask_BT=nothing_BT.bool(), rollout_logprobs_BT=nothing_BT, version_BT=nothing_BT.long(),
        reward_B=torch.zeros(len(rows)), prompt_tokens_B=torch.zeros(len(rows)).long(),
    )  # fmt: skip


@pytest.mark.parametrize("scorer", [TokenScorer, ValueScorer, TextScorer])
def test_the_model_decides_whether_its_rows_are_packed(scorer: type[Scorer]) -> None:
    model = build("llama", AutoModelForSequenceClassification)
    assert not scorer(model).packing
    attend_by_segment(model)
    assert scorer(model).packing


# ----------------------------------------------------------------------------- refused by name


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("qwen3_next", {}, "AttentionInterface"),
        ("stablelm", {}, "AttentionInterface"),
        ("minimax", {}, "linear_attention"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "conv"),
    ],
)
def test_an_architecture_with_another_way_to_the_next_segment_is_refused(
    kind: str, more: dict[str, Any], said: str
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **more), attn_implementation="sdpa")
    with pytest.raises(CannotPack, match=rf"{type(model).__name__} \({kind}\) .*{said}.*train\.packing=false"):
        attend_by_segment(model)


def test_an_attention_that_asks_for_more_than_ours_reads_is_refused() -> None:
    model = build("gemma2")
    attend_by_segment(model)
    with pytest.raises(CannotPack, match="Gemma2Attention hands its attention softcap"):
        of_tokens(model, ragged_batch())


# ----------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 8])
def test_pytorchs_kernel_for_segments_agrees_with_one_segment_at_a_time(window: int | None) -> None:
    torch.manual_seed(0)
    lengths, device = [5, 1, 32, 17], torch.device("cuda")
    query, key, value = (torch.randn(1, heads, sum(lengths), 64, device=device) for heads in (4, 2, 2))
    how = packed([torch.zeros(length, dtype=torch.long) for length in lengths], device)
    how = {**how, "scaling": 0.125, "sliding_window": window}
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    slow, _ = segment_attention(module, query, key, value, None, **how)
    fast, _ = segment_attention(module, query.bfloat16(), key.bfloat16(), value.bfloat16(), None, **how)
    torch.testing.assert_close(fast.float(), slow, atol=2e-2, rtol=2e-2)
