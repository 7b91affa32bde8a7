"""Packed rows are as if alone: what is said of them, and what is learned from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import toy_groups, toy_rows, with_exact_norms
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from workers import segments
from workers.batches import collate
from workers.config import ModelConfig
from workers.families import Family, families_of
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
from workers.packing import CannotPack, attend_by_segment, packed, segment_attention
from workers.records import Batch
from workers.segments import Segments

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
    model = with_exact_norms(build(kind, auto))
    padded_said, padded_learned = said_and_learned(model, ask)
    attend_by_segment(model)
    said, learned = said_and_learned(model, ask)
    assert said.std() > 1e-3
    torch.testing.assert_close(said, padded_said, atol=1e-12, rtol=1e-12)
    assert learned.keys() == padded_learned.keys()
    largest = max(gradient.abs().max() for gradient in padded_learned.values())
    for name, gradient in learned.items():
        assert (gradient - padded_learned[name]).abs().max() <= 1e-12 * largest, name


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


# ----------------------------------------------------------------------------- shared prompts


FAMILIES = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=5
)
"""Tokens of a prompt and of each response to it."""


def siblings_of(families: Sequence[tuple[int, Sequence[int]]], *, seed: int = 0) -> Batch:
    """Random tokens; siblings do not lie next to each other."""
    random = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(5, 100, (prompt,), generator=random) for prompt, _ in families]
    rows = [(family, tokens) for family, (_, responses) in enumerate(families) for tokens in responses]
    rows = rows[::2] + rows[1::2]
    batch = rows_of([(families[family][0], tokens) for family, tokens in rows])
    responses = [torch.randint(5, 100, (tokens,), generator=random) for _, tokens in rows]
    context = [torch.cat([prompts[family], response]) for (family, _), response in zip(rows, responses, strict=True)]
    return replace(
        batch,
        context=tuple(context),
        token_ids_BT=torch.nn.utils.rnn.pad_sequence(responses, batch_first=True),
        prompts=tuple(family for family, _ in rows),
    )


def learned_from(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs, and all gradients of something that weighs each of them differently."""
    model.zero_grad()
    said = of_tokens(model, batch)
    (said * torch.arange(1.0, said.numel() + 1.0).view(said.shape).sin()).sum().backward()
    return said.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("block_tokens", [0, 11, 64], ids=lambda tokens: f"blocks of {tokens}")
@pytest.mark.parametrize("kind", ["gpt2", "mistral"])
@given(families=FAMILIES)
@settings(deadline=None, max_examples=12)
def test_a_prompt_that_is_there_once_says_and_teaches_what_it_does_in_each_row(
    kind: str, block_tokens: int, families: list[tuple[int, list[int]]]
) -> None:
    batch = siblings_of(families)
    model = with_exact_norms(build(kind))
    said, learned = learned_from(model, batch)
    attend_by_segment(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "BLOCK_TOKENS", block_tokens)
        shared = inputs_for(batch, device=CPU, packing=True)
        once, sums = learned_from(model, batch)
    assert shared.text["input_ids"].numel() == sum(prompt + sum(own) for prompt, own in families)
    torch.testing.assert_close(once, said, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(sums, learned, atol=1e-11, rtol=1e-11)


@given(FAMILIES)
@settings(deadline=None)
def test_every_token_is_predicted_by_the_one_before_it_also_behind_a_shared_prompt(
    families: list[tuple[int, list[int]]],
) -> None:
    batch = siblings_of(families)
    inputs = inputs_for(batch, device=CPU, packing=True)
    flat, positions = inputs.text["input_ids"].flatten(), inputs.text["position_ids"].flatten()
    for row, column, predictor, target in zip(
        inputs.row_N.tolist(), inputs.column_N.tolist(), inputs.predictor_N.tolist(), inputs.target_N, strict=True
    ):
        before = batch.prompt_lengths[row] + column - 1
        assert positions[predictor] == before
        assert flat[predictor] == batch.context[row][before]
        assert target == batch.context[row][before + 1]
    assert flat[inputs.last_B].tolist() == [int(tokens[-1]) for tokens in batch.context]
    assert (positions[inputs.last_B] + 1).tolist() == list(batch.lengths())


@given(FAMILIES)
@settings(deadline=None)
def test_the_runs_of_a_kernel_let_each_token_see_its_prompt_and_its_own_row(
    families: list[tuple[int, list[int]]],
) -> None:
    """Runs of queries, each to a run of keys that ends where it does: against who may see whom, pair by pair."""
    laid = families_of(siblings_of(families))
    runs, who = segments._Runs.of(laid, CPU), []
    for number, family in enumerate(laid):
        who += [(number, 0, at) for at in range(family.prompt_tokens)]
        for row, tokens in enumerate(family.response_tokens, start=1):
            who += [(number, row, family.prompt_tokens + at) for at in range(tokens)]
    keys = list(range(len(who))) if runs.keys_K is None else runs.keys_K.tolist()
    seen: dict[int, list[int]] = {}
    ends = zip(pairwise(runs.query_ends.tolist()), pairwise(runs.key_ends.tolist()), strict=True)
    for (query, query_end), (key, key_end) in ends:
        for token in range(query, query_end):
            seen[token] = keys[key : key_end - (query_end - 1 - token)]
    for token, (family, row, at) in enumerate(who):
        expected = [k for k, (own, of, where) in enumerate(who) if own == family and of in (0, row) and where <= at]
        assert sorted(seen[token]) == expected
    assert runs.most_queries == max(runs.query_ends.diff().tolist())
    assert runs.most_keys == max(runs.key_ends.diff().tolist())


# ----------------------------------------------------------------------------- contamination


def one_changed(batch: Batch, row: int) -> tuple[Batch, list[int]]:
    """Other tokens in one row's response; and all other rows."""
    context, tokens_BT = [own.clone() for own in batch.context], batch.token_ids_BT.clone()
    response_T = context[row][batch.prompt_lengths[row] :]
    response_T.add_(17).remainder_(100)
    tokens_BT[row, : len(response_T)] = response_T
    others = [other for other in range(len(batch)) if other != row]
    return replace(batch, context=tuple(context), token_ids_BT=tokens_BT), others


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_tokens_in_one_response_change_no_bit_of_any_other_row(kind: str, dtype: torch.dtype) -> None:
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
    hidden_1SH = model.base_model(**text_of(rows), use_cache=False).last_hidden_state
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
    text = {name: value for name, value in text_of(rows).items() if name in ("input_ids", "position_ids")}
    if "attention_mask" in naive:
        naive = {**naive, "attention_mask": torch.ones_like(text["input_ids"])}
    with torch.no_grad():
        alone_TV = model(input_ids=rows[1][None]).logits[0]
        contaminated_TV = model(**text, **naive).logits[0, len(rows[0]) :]
        attend_by_segment(model)
        exact_TV = model(**text_of(rows), use_cache=False).logits[0, len(rows[0]) :]
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


def text_of(rows: Sequence[torch.Tensor]) -> Mapping[str, Any]:
    """Unrelated rows, packed in their order."""
    families = [Family(rows=(row,), prompt_tokens=1, response_tokens=(len(own) - 1,)) for row, own in enumerate(rows)]
    batch = replace(rows_of([(1, len(own) - 1) for own in rows]), context=tuple(rows))
    return packed(batch, families, CPU)


def rows_of(rows: Sequence[tuple[int, int]]) -> Batch:
    context = tuple(torch.arange(sum(lengths)) + 100 * row for row, lengths in enumerate(rows))
    responses = [tokens[prompt:] for tokens, (prompt, _) in zip(context, rows, strict=True)]
    tokens_BT = torch.nn.utils.rnn.pad_sequence(responses, batch_first=True)
    nothing_BT = torch.zeros(tokens_BT.shape)
    return Batch(
        context=context, prompt_lengths=tuple(prompt for prompt, _ in rows), prompts=tuple(range(len(rows))),
        token_ids_BT=tokens_BT,
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
    families = [
        Family(rows=(0,), prompt_tokens=2, response_tokens=(3,)),
        Family(rows=(1, 2, 3), prompt_tokens=20, response_tokens=(5, 1, 9)),
        Family(rows=(4, 5), prompt_tokens=150, response_tokens=(130, 40)),
    ]
    device = torch.device("cuda")
    tokens = sum(family.tokens for family in families)
    query, key, value = (torch.randn(1, heads, tokens, 64, device=device) for heads in (4, 2, 2))
    how = {"segments": Segments(families, device), "scaling": 0.125, "sliding_window": window}
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    slow, _ = segment_attention(module, query, key, value, None, **how)
    fast, _ = segment_attention(module, query.bfloat16(), key.bfloat16(), value.bfloat16(), None, **how)
    torch.testing.assert_close(fast.float(), slow, atol=2e-2, rtol=2e-2)
