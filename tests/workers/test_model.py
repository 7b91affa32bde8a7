"""What the model says of each response token, against the plain Hugging Face forward pass of one row at a time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny import plain_logprobs, toy_groups, toy_rows, write_policy
from transformers import AutoConfig, AutoModelForCausalLM

from workers.batches import append_blank, collate
from workers.config import ModelConfig, Weights
from workers.linear_logprobs import Term, linear_logprobs
from workers.model import TokenScorer, UnsupportedModel, inputs_for, load_language_model, score_tokens
from workers.records import Batch, TokenLogprobs

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_policy(tmp_path_factory.mktemp("policy"), tied=request.param)


@pytest.fixture(scope="module")
def plain(folder: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def scorer(folder: str) -> TokenScorer:
    return TokenScorer(load_language_model(ModelConfig(path=folder), seed=0))


def ragged_batch() -> Batch:
    return append_blank(collate(toy_rows((0, 1, 2)), toy_groups()))


def one_row(prompt: list[int], response: list[int]) -> Batch:
    return Batch(
        context=(torch.tensor(prompt + response),),
        prompt_lengths=(len(prompt),),
        prompts=(0,),
        token_ids_BT=torch.tensor([response]),
        mask_BT=torch.ones(1, len(response), dtype=torch.bool),
        rollout_logprobs_BT=torch.zeros(1, len(response)),
        version_BT=torch.zeros(1, len(response), dtype=torch.long),
        reward_B=torch.zeros(1),
        prompt_tokens_B=torch.tensor([len(response)]),
    )


def score(scorer: TokenScorer, batch: Batch, temperature: float = 1.0) -> TokenLogprobs:
    return score_tokens(scorer, batch, temperature=temperature, device=CPU)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_padding_changes_nothing_each_row_is_as_if_alone(
    scorer: TokenScorer, plain: torch.nn.Module, temperature: float
) -> None:
    batch = ragged_batch()
    assert len(set(batch.lengths())) > 3, "rows of one length would prove nothing"
    found = score(scorer, batch, temperature).logprobs_BT
    for row, (tokens, prompt_length) in enumerate(zip(batch.context, batch.prompt_lengths, strict=True)):
        alone = plain_logprobs(plain, tokens.tolist(), prompt_length, temperature)
        torch.testing.assert_close(found[row, : len(alone)], alone, atol=1e-6, rtol=1e-6)
        assert not found[row, len(alone) :].any(), "nothing is said of positions without a token"


def test_a_token_is_predicted_by_the_position_before_it(scorer: TokenScorer) -> None:
    prompt, response = [7, 8, 9], [20, 21, 22, 23]
    before = score(scorer, one_row(prompt, response)).logprobs_BT[0]
    for changed in range(len(response)):
        others = response.copy()
        others[changed] = 90
        moved = score(scorer, one_row(prompt, others)).logprobs_BT[0] != before
        assert moved.tolist() == [position >= changed for position in range(len(response))]


def test_the_first_token_is_predicted_by_the_prompts_last(scorer: TokenScorer) -> None:
    first = score(scorer, one_row([7, 8, 9], [20, 21])).logprobs_BT[0, 0]
    assert score(scorer, one_row([7, 8, 10], [20, 21])).logprobs_BT[0, 0] != first


def test_probabilities_of_all_next_tokens_add_up_to_one(scorer: TokenScorer) -> None:
    rows = [one_row([7, 8], [token]) for token in range(104)]
    total = sum(math.exp(score(scorer, row, 0.8).logprobs_BT.item()) for row in rows)
    assert total == pytest.approx(1.0, abs=1e-5)


def test_temperature_divides_logits(scorer: TokenScorer, plain: torch.nn.Module) -> None:
    logits = plain(input_ids=torch.tensor([[7, 8, 9]])).logits[0, -1]
    found = score(scorer, one_row([7, 8, 9], [20]), 2.0).logprobs_BT.item()
    assert found == pytest.approx((logits / 2.0).log_softmax(-1)[20].item(), abs=1e-6)
    assert abs(found - logits.log_softmax(-1)[20].item()) > 1e-2


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_entropy_is_that_of_the_whole_distribution(
    scorer: TokenScorer, plain: torch.nn.Module, temperature: float
) -> None:
    batch = ragged_batch()
    found = score(scorer, batch, temperature).entropy_BT
    for row, (tokens, prompt_length) in enumerate(zip(batch.context, batch.prompt_lengths, strict=True)):
        logits = plain(input_ids=tokens[None]).logits[0, prompt_length - 1 : -1] / temperature
        brute = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(found[row, : len(brute)], brute, atol=2e-6, rtol=1e-6)
        assert not found[row, len(brute) :].any()


def test_entropy_carries_no_gradient_unless_asked_and_log_probs_do(scorer: TokenScorer) -> None:
    said = score(scorer, ragged_batch())
    assert not said.entropy_BT.requires_grad
    assert said.logprobs_BT.requires_grad
    asked = score_tokens(scorer, ragged_batch(), temperature=1.0, device=CPU, entropy_gradient=True)
    assert asked.entropy_BT.requires_grad and torch.equal(asked.entropy_BT, said.entropy_BT)
    with torch.no_grad():
        unable = score_tokens(scorer, ragged_batch(), temperature=1.0, device=CPU, entropy_gradient=True)
    assert not unable.entropy_BT.requires_grad


def test_the_entropys_gradient_is_that_of_the_plain_model(folder: str) -> None:
    batch = ragged_batch()
    plain, own = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for _ in range(2))
    said = score_tokens(TokenScorer(own), batch, temperature=0.7, device=CPU, entropy_gradient=True)
    said.entropy_BT.sum().backward()
    for tokens, prompt_length in zip(batch.context, batch.prompt_lengths, strict=True):
        logprobs_TV = (plain(input_ids=tokens[None]).logits[0, prompt_length - 1 : -1] / 0.7).log_softmax(-1)
        (-logprobs_TV.exp() * logprobs_TV).sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-11, rtol=1e-9)


def test_the_gradient_is_that_of_the_plain_model(scorer: TokenScorer, plain: torch.nn.Module) -> None:
    batch = ragged_batch()
    scorer.zero_grad()
    plain.zero_grad()
    score(scorer, batch, 0.7).logprobs_BT.sum().backward()
    for tokens, prompt_length in zip(batch.context, batch.prompt_lengths, strict=True):
        plain_logprobs(plain, tokens.tolist(), prompt_length, 0.7).sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in scorer.model.named_parameters():
        scale = expected[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=2e-6 * max(scale, 1.0), rtol=1e-4)


def test_logits_are_computed_for_response_tokens_only(scorer: TokenScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, read = ragged_batch(), []

    def counted(terms: list[Term], *others: object, **settings: object) -> object:
        read.append(len(terms[0].read_NK))
        return linear_logprobs(terms, *others, **settings)

    monkeypatch.setattr("workers.model.linear_logprobs", counted)
    score(scorer, batch)
    responses = sum(batch.lengths()) - sum(batch.prompt_lengths)
    assert read == [responses]
    assert inputs_for(batch, device=CPU).target_N.shape == (responses,)


def test_dropout_is_off_even_while_training(tmp_path: Path) -> None:
    settings = AutoConfig.from_pretrained(write_policy(tmp_path, tied=False))
    settings.attention_dropout = 0.5
    settings.save_pretrained(tmp_path)
    scorer = TokenScorer(load_language_model(ModelConfig(path=str(tmp_path)), seed=0)).train()
    batch = ragged_batch()
    assert torch.equal(score(scorer, batch).logprobs_BT, score(scorer, batch).logprobs_BT)


def test_gradient_checkpointing_changes_no_gradient(folder: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        config = ModelConfig(path=folder, gradient_checkpointing=checkpointing)
        scorer = TokenScorer(load_language_model(config, seed=0)).train()
        score(scorer, ragged_batch()).logprobs_BT.sum().backward()
        gradients.append([parameter.grad for parameter in scorer.parameters()])
    for without, with_it in zip(*gradients, strict=True):
        torch.testing.assert_close(with_it, without, atol=1e-6, rtol=1e-5)


def test_random_weights_follow_the_seed(folder: str) -> None:
    config = ModelConfig(path=folder, weights=Weights.RANDOM)
    one, same, other = (load_language_model(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("kind", "key"), [("gemma2", "final_logit_softcapping"), ("cohere", "logit_scale"), ("granite", "logits_scaling")]
)
def test_an_architecture_that_changes_its_logits_is_refused_by_the_key(tmp_path: Path, kind: str, key: str) -> None:
    AutoConfig.for_model(kind, **{key: 8.0}).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=key):
        load_language_model(ModelConfig(path=str(tmp_path)), seed=0)
