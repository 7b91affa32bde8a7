"""A reward model as the judge: read at the last token that the policy wrote, alone or beside a function."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from engine.judging import reward_specs
from rewards.score import Failure, FailureKind, Score
from workers.config import Device, ModelConfig, RewardConfig
from workers.model import UnsupportedModel
from workers.records import Group, Message, Prompt, Rollout, Span, Stop
from workers.reward_model_judge import RewardModelJudge, reward_model_judge_setup

EXACT = "rewards.number:exact"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.write_policy(tmp_path_factory.mktemp("policy"), tied=False)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, policy: str) -> str:
    """With the policy's tokenizer beside it, as `algo=rm` exports it."""
    folder = tmp_path_factory.mktemp("reward_model")
    tiny.write_reward_model(folder, policy)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(policy: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture(autouse=True)
def one_at_a_time() -> Iterator[None]:
    judges.clear()
    yield
    for judge in judges:
        judge.close()


judges: list[RewardModelJudge] = []


def judge(policy: str, model: str, *, function: str = "", budget: int = 10**6, **reward: float) -> RewardModelJudge:
    config = RewardConfig(function=function, model=model, **reward)
    setup = reward_model_judge_setup(ModelConfig(path=policy), config, Device.CPU, tokens_per_micro_batch=budget)
    judges.append(RewardModelJudge(reward_specs(config), (), setup))
    return judges[-1]


def rollout(text: str, tokenizer: PreTrainedTokenizerBase, *, sample: int = 0, ended: bool = True) -> Rollout:
    """An answer to 12+34= as a rollout engine hands it over."""
    messages = (Message(role="user", content="12+34="),)
    asked = [{"role": "user", "content": "12+34="}]
    prompt_ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    token_ids = tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * ended
    length = len(token_ids)
    return Rollout(
        prompt=Prompt(id="one", messages=messages, token_ids=tuple(prompt_ids), answer="46", row={}, from_text=True),
        draw=3,
        sample=sample,
        text=text,
        token_ids=np.array(token_ids, dtype=np.int32),
        logprobs=np.zeros(length, dtype=np.float32),
        spans=(Span(start=0, end=length, sampled=True, version=0),),
        stop=Stop.END if ended else Stop.LENGTH,
    )


def group_of(texts: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, *, greedy: str | None = None) -> Group:
    return Group(
        rollouts=tuple(rollout(text, tokenizer, sample=n) for n, text in enumerate(texts)),
        greedy=None if greedy is None else rollout(greedy, tokenizer),
        prompt_text="",
    )


def plain_score(model: PreTrainedModel, own: Rollout) -> float:
    """One row alone through the plain model, its head read by hand at the last token."""
    tokens = torch.tensor([[*own.prompt.token_ids, *own.token_ids.tolist()]])
    with torch.no_grad():
        hidden = model.base_model(tokens).last_hidden_state[0, -1]
        return float(model.score(hidden))


@pytest.mark.parametrize("budget", [10**6, 24, 1])
def test_every_response_is_scored_at_its_own_last_token(
    policy: str, reward_model: str, tokenizer: PreTrainedTokenizerBase, budget: int
) -> None:
    """Pitfall 19: whatever lies beside it in a batch, and although padding may stand in a text."""
    made = group_of(("46", "4", "12345678", "0"), tokenizer, greedy="45")
    summary = judge(policy, reward_model, budget=budget).score(made)
    plain = AutoModelForSequenceClassification.from_pretrained(reward_model, num_labels=1)
    expected = [plain_score(plain, own) for own in made.rollouts]
    np.testing.assert_allclose(summary.score_G, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1
    assert summary.greedy is not None and summary.greedy.score == pytest.approx(
        plain_score(plain, made.greedy), abs=1e-5
    )
    assert summary.judgements[0].parts.keys() == summary.part_means().keys() == {"reward_model"}
    assert summary.draw == 3 and len(summary.judgements) == 5


def test_where_padding_is_the_end_token_the_end_is_still_read(
    policy: str, reward_model: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Pitfall 17: transformers' own forward pass would read before it."""
    folder = shutil.copytree(reward_model, tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    made = group_of(("46", "4"), tokenizer)
    summary, expected = (judge(policy, str(path)).score(made) for path in (folder, reward_model))
    np.testing.assert_array_equal(summary.score_G, expected.score_G)
    row = [*made.rollouts[0].prompt.token_ids, *made.rollouts[0].token_ids.tolist()]
    with torch.no_grad():
        theirs = float(model(torch.tensor([row])).logits[0, 0])
    assert abs(theirs - summary.score_G[0]) > 1e-3


def test_a_truncated_response_is_read_where_it_was_cut(
    policy: str, reward_model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    own = rollout("46", tokenizer, ended=False)
    summary = judge(policy, reward_model).score(Group(rollouts=(own,), greedy=None, prompt_text=""))
    plain = AutoModelForSequenceClassification.from_pretrained(reward_model, num_labels=1)
    assert summary.score_G[0] == pytest.approx(plain_score(plain, own), abs=1e-5)


def test_another_tokenizer_reads_the_text_by_its_own_template(
    policy: str, reward_model: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = shutil.copytree(reward_model, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<|end|>", "<|end|>  "))
    summary = judge(policy, str(folder)).score(group_of(("46",), tokenizer))
    own = rollout("46", tokenizer)
    turns = [{"role": "user", "content": "12+34="}, {"role": "assistant", "content": "46"}]
    written = AutoTokenizer.from_pretrained(folder).apply_chat_template(turns, return_dict=False)
    end = len(written) - written[::-1].index(tokenizer.eos_token_id)  # the blanks behind it are not read
    assert end < len(written)
    moved = replace(own, prompt=replace(own.prompt, token_ids=()), token_ids=np.array(written[:end], dtype=np.int32))
    plain = AutoModelForSequenceClassification.from_pretrained(reward_model, num_labels=1)
    assert summary.score_G[0] == pytest.approx(plain_score(plain, moved), abs=1e-5)
    assert abs(summary.score_G[0] - plain_score(plain, own)) > 1e-4


def test_a_function_beside_it_is_weighed_and_both_are_told(
    policy: str, reward_model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    made = group_of(("46", "45"), tokenizer, greedy="46")
    alone = judge(policy, reward_model).score(made)
    both = judge(policy, reward_model, function=EXACT, function_weight=2.0, model_weight=0.5)
    summary = both.score(made)
    np.testing.assert_allclose(summary.score_G, 0.5 * alone.score_G + [2.0, 0.0], rtol=1e-6)
    assert summary.greedy.score == pytest.approx(0.5 * alone.score_G[0] + 2.0)
    assert summary.part_means() == {"exact": 0.5, "reward_model": pytest.approx(alone.score_G.mean())}
    assert isinstance(summary.judgements[1], Score)


def test_a_failed_function_counts_only_where_it_has_weight(
    policy: str, reward_model: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def f(response, answer):\n    return None\n")
    made, spec = group_of(("46",), tokenizer), f"{tmp_path / 'mine.py'}:f"
    heavy = judge(policy, reward_model, function=spec).score(made)
    assert heavy.failures()[0].kind is FailureKind.UNSCORABLE and np.isnan(heavy.score_G[0])
    shown = judge(policy, reward_model, function=spec, function_weight=0.0).score(made)
    assert shown.failures() == {} and np.isfinite(shown.score_G[0])


def test_a_score_that_is_not_finite_is_a_failure_and_no_zero(
    policy: str, reward_model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    broken = judge(policy, reward_model)
    with torch.no_grad():
        broken._model.score.weight.fill_(float("inf"))
    summary = broken.score(group_of(("46",), tokenizer, greedy="46"))
    assert np.isnan(summary.score_G[0]) and np.isnan(summary.greedy.score)
    assert [failure.kind for failure in summary.failures().values()] == [FailureKind.NOT_FINITE] * 2
    assert isinstance(summary.judgements[0], Failure)


def test_groups_that_are_scored_side_by_side_keep_their_own_scores(
    policy: str, reward_model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    worker = judge(policy, reward_model, function=EXACT)
    groups = [group_of((str(n), "46", str(n) * (n % 4)), tokenizer) for n in range(24)]
    alone = [worker.score(group).score_G for group in groups]
    with ThreadPoolExecutor(6) as threads:
        together = [summary.score_G for summary in threads.map(worker.score, groups)]
    np.testing.assert_array_equal(together, alone)


def test_a_language_model_is_no_judge(policy: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"it lacks score\.weight"):
        judge(policy, policy)
