"""Judges groups of rollouts with a reward model, and with a function beside it where there is one: a plain class, which
becomes a Ray actor where its resources are known.

Suffixes: `B` responses, `S` tokens of a prompt and its response, right-padded.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rewards.mix import Voice, mixed
from rewards.score import judgement_of
from rewards.spec import RewardSpec
from workers.canary import Canary
from workers.config import Device, ModelConfig, RewardConfig
from workers.micro_batches import cut_padded
from workers.model import DTYPES, UnsupportedModel
from workers.records import Group, GroupSummary, Rollout
from workers.reward_worker import RewardWorker
from workers.tokenizer import load_tokenizer

PART = "reward_model"
"""What a reward model's score is called among the parts of a reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelJudgeSetup:
    """What a judge with a reward model is built from."""

    model: ModelConfig
    """Of the reward model."""
    policy: str
    """The policy's folder or hub id: its tokenizer wrote the rollouts."""
    reward: RewardConfig
    device: Device
    tokens_per_micro_batch: int


class RewardModelJudge:
    """A frozen sequence classifier with one label, and perhaps a function, whose weighted scores make the reward."""

    def __init__(self, specs: Sequence[RewardSpec], canaries: Sequence[Canary], setup: RewardModelJudgeSetup) -> None:
        """The functions are tried before the model is loaded. Raises RewardError where one cannot be used here."""
        reward = setup.reward
        self._functions = RewardWorker(specs, canaries, reward) if specs else None
        self._reward, self._tokens_per_micro_batch = reward, setup.tokens_per_micro_batch
        self._device = torch.device("cuda", 0) if setup.device is Device.CUDA else torch.device("cpu")
        self._model = load_reward_model(setup.model).to(self._device)
        self._tokenizer = load_tokenizer(setup.model.path)
        self._reads_tokens = _write_alike(self._tokenizer, load_tokenizer(setup.policy))
        self._asking = threading.Lock()

    def score(self, group: Group) -> GroupSummary:
        """What is to be known of the siblings of one draw, judged. Any thread may ask."""
        started = time.perf_counter()
        voices = self._functions.voices(group) if self._functions else [[] for _ in group.responses]
        scores = self._scores(group.responses)
        judgements = [mixed([self._voice(score), *own]) for score, own in zip(scores, voices, strict=True)]
        return group.summary(judgements, judging_s=time.perf_counter() - started)

    def _voice(self, score: float) -> Voice:
        """What the reward model says of a response."""
        said = judgement_of(score, name=PART)
        return Voice(name=PART, weight=self._reward.model_weight, abstains=False, said=said)

    @torch.inference_mode()
    def _scores(self, rollouts: Sequence[Rollout]) -> list[float]:
        # The model's memory is for one group at a time, and tokenizers are not made for threads.
        with self._asking:
            return self._scores_of_one_group(rollouts)

    def _scores_of_one_group(self, rollouts: Sequence[Rollout]) -> list[float]:
        rows = [self._read(rollout) for rollout in rollouts]
        scores = [math.nan] * len(rows)
        for chosen in cut_padded([(len(row),) for row in rows], self._tokens_per_micro_batch):
            for row, score in zip(chosen, self._forward([rows[row] for row in chosen]).tolist(), strict=True):
                scores[row] = score
        return scores

    def _read(self, rollout: Rollout) -> Tensor:
        """[S] The very tokens that the policy wrote, or the same turns as the reward model's own template has them."""
        if self._reads_tokens:
            return torch.tensor((*rollout.prompt.token_ids, *rollout.token_ids.tolist()), dtype=torch.long)
        turns = [{"role": message.role, "content": message.content} for message in rollout.prompt.messages]
        turns.append({"role": "assistant", "content": rollout.text})
        token_ids = self._tokenizer.apply_chat_template(turns, return_dict=False)
        special = set(self._tokenizer.all_special_ids)
        last = max((at for at, token in enumerate(token_ids) if token in special), default=len(token_ids) - 1)
        # A template may write blanks behind an answer's end token, which the model was not trained to be read at.
        end = last + 1 if not self._tokenizer.decode(token_ids[last + 1 :]).strip() else len(token_ids)
        return torch.tensor(token_ids[:end], dtype=torch.long)

    def _forward(self, rows: Sequence[Tensor]) -> Tensor:
        """[B] in float32. Never read at the first padding token: where padding is the end token, that is too early."""
        input_ids_BS = nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(self._device)
        length_B = torch.tensor([len(row) for row in rows], device=self._device)
        if not hasattr(self._model, "score"):  # an encoder reads at its own place, and must be told what is padding
            mask_BS = torch.arange(input_ids_BS.shape[1], device=self._device) < length_B[:, None]
            return self._model(input_ids=input_ids_BS, attention_mask=mask_BS.long()).logits[:, 0].float()
        hidden_BSH = self._model.base_model(input_ids=input_ids_BS, use_cache=False).last_hidden_state
        last_BH = hidden_BSH[torch.arange(len(rows), device=self._device), length_B - 1]
        return self._model.score(last_BH).squeeze(-1).float()

    def close(self) -> None:
        """Kill the functions' processes."""
        if self._functions:
            self._functions.close()


def load_reward_model(config: ModelConfig) -> PreTrainedModel:
    """A sequence classifier with one label, to be asked only. Raises UnsupportedModel where no head was trained."""
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        config.path, dtype=DTYPES[config.precision], output_loading_info=True
    )
    missing = sorted(loading["missing_keys"])
    if missing or model.config.num_labels != 1:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has {model.config.num_labels} labels"
        raise UnsupportedModel(f"reward.model is {config.path}: as a sequence classifier with one label it {wrong}")
    return model.eval()


def _write_alike(own: PreTrainedTokenizerBase, others: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of one mean the same to the other, and a conversation is laid out in the same way."""
    templates = own.chat_template in (None, others.chat_template)
    return templates and own.get_vocab() == others.get_vocab()


def reward_model_judge_setup(
    model: ModelConfig, reward: RewardConfig, device: Device, *, tokens_per_micro_batch: int
) -> RewardModelJudgeSetup:
    """A reward model that calculates as the policy does."""
    return RewardModelJudgeSetup(
        model=replace(model, path=reward.model),
        policy=model.path,
        reward=reward,
        device=device,
        tokens_per_micro_batch=tokens_per_micro_batch,
    )
