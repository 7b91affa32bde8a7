"""The bench counts what arithmetic says: no matrix product is passed over, and none is counted twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from tests.bench._made_up import seen_pairs
from tests.bench.redundancy import (
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    SETTINGS,
    Passes,
    attention_flops,
    counted,
    groups_of,
    in_a_process,
    updates_of,
)
from workers.batches import collate, select
from workers.model import TokenScorer, score_tokens
from workers.packing import attend_by_segment
from workers.records import Batch

SHAPE = {"vocab_size": 104, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
HEADS, KEY_VALUE_HEADS, SIZE = 4, 2, 6
BODY = 3 * (24 * 24 + 2 * 24 * 12 + 24 * 24 + 3 * 24 * 40)
"""Parameters of matrices: queries, keys and values, output, and the three of the perceptron."""
HEAD = 104 * 24
PROMPT, RESPONSE = PROMPT_TOKENS, RESPONSE_TOKENS[0][0]
TOKENS = PROMPT + RESPONSE
SCORES = 2 * 3 * HEADS * TOKENS**2 * SIZE
"""Of a row, PyTorch's way: of all pairs, seen or not."""
FORWARD = 2 * BODY * TOKENS + 2 * SCORES + 2 * HEAD * RESPONSE


def model() -> PreTrainedModel:
    config = Qwen2Config(**SHAPE, num_attention_heads=HEADS, num_key_value_heads=KEY_VALUE_HEADS)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def rows() -> Batch:
    groups = groups_of(own_prompts=False)
    [update] = updates_of(groups, 1)
    return collate(update.rows, groups)


def passed(batch: Batch, learner: PreTrainedModel, *, backward: bool) -> Passes:
    def run() -> None:
        scored = score_tokens(TokenScorer(learner), batch, temperature=1.0, device=torch.device("cpu"))
        if backward:
            scored.logprobs_BT.sum().backward()

    return counted(run, learner)


def test_a_forward_pass_of_a_row_is_two_flops_for_each_parameter_and_token_and_its_attention() -> None:
    found = passed(select(rows(), [0]), model(), backward=False)
    expected = Passes(flops=FORWARD, attention=2 * SCORES, scores_again=0, head_tokens=RESPONSE, positions=TOKENS)
    assert found == expected


def test_a_backward_pass_is_twice_that_and_what_is_made_again() -> None:
    found = passed(select(rows(), [0]), model(), backward=True)
    assert found.scores_again == SCORES
    assert found.flops == 3 * FORWARD + SCORES + 2 * HEAD * RESPONSE


def test_padding_is_computed_too() -> None:
    found = passed(select(rows(), [0, 1]), model(), backward=False)
    responses = sum(RESPONSE_TOKENS[0][:2])
    assert found.positions == 2 * TOKENS > 2 * PROMPT + responses
    assert found.flops == 2 * (2 * BODY * TOKENS + 2 * SCORES) + 2 * HEAD * responses


def test_siblings_that_are_packed_have_their_prompt_computed_once() -> None:
    learner = model()
    attend_by_segment(learner)
    siblings = select(rows(), range(4))
    together = passed(siblings, learner, backward=False)
    apart = passed(replace(siblings, prompts=tuple(range(4))), learner, backward=False)
    assert (together.positions, apart.positions) == (
        PROMPT + sum(RESPONSE_TOKENS[0]),
        4 * PROMPT + sum(RESPONSE_TOKENS[0]),
    )
    linear = (apart.flops - apart.attention) - (together.flops - together.attention)
    assert linear == 2 * BODY * 3 * PROMPT


def test_a_prompt_and_two_responses_see_each_other_as_they_should() -> None:
    # 3 within the prompt; the responses look at it from 1 and from 2 tokens, and at themselves.
    assert seen_pairs(2, (1, 2)) == 3 + (2 + 1) + (4 + 3)
    assert attention_flops(model().config, 1) == 4 * 3 * HEADS * SIZE


@pytest.mark.parametrize("name", ["without a reference", "with a reference"])
def test_a_step_makes_no_pass_but_its_own_and_that_of_a_reference(name: str) -> None:
    setting = next(setting for setting in SETTINGS if setting.name == name)
    found = in_a_process("nano", setting)
    assert found.ratio_without == pytest.approx(setting.goal, abs=1e-12)
    assert found.look_flops == 0
    assert found.reference_flops == (found.forward_flops if name == "with a reference" else 0)
    assert found.padding == 1.0
