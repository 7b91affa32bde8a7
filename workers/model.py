"""A Hugging Face model that answers one question: how likely is each token of these responses, or, as a critic, what
is to be expected before each of them?

Right-padded rows under causal attention need no attention mask: a real token never looks at the padding behind it.
That keeps the fast causal kernel and is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from workers.config import ModelConfig, Precision, Weights
from workers.records import Batch, TokenLogprobs

DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}

REFUSED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Config keys of architectures that change logits after the head; reading the head alone would be wrong for them."""


class UnsupportedModel(ValueError):
    """The architecture computes its logits in a way that this module does not reproduce."""


def load_language_model(config: ModelConfig, *, seed: int) -> PreTrainedModel:
    """The policy's network, without dropout: the ratio of an on-policy step must be exactly 1.

    Raises UnsupportedModel for an architecture that scales or caps its logits after the head.
    """
    settings = _settings(config)
    refused = [key for key in REFUSED_HEADS if getattr(settings, key, None) not in (None, 1.0)]
    if refused:
        raise UnsupportedModel(
            f"{config.path} ({settings.model_type}) uses {', '.join(refused)}, which is not supported"
        )
    dtype = DTYPES[config.precision]
    if config.weights is Weights.RANDOM:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="sdpa")
    else:
        model = AutoModelForCausalLM.from_pretrained(
            config.path, config=settings, dtype=dtype, attn_implementation="sdpa"
        )
    return _ready_to_train(model, config)


def load_value_model(config: ModelConfig) -> PreTrainedModel:
    """A critic's network: the body of the model at `config.path` and a head that gives one number.

    A reward model brings its head along; on a language model the head starts at zero, so that the critic first expects
    nothing instead of noise.
    """
    settings = _settings(config)
    settings.num_labels = 1
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        config.path,
        config=settings,
        dtype=DTYPES[config.precision],
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    if any(name.startswith("score.") for name in loading["missing_keys"]):
        _zero(model.score)
    return _ready_to_train(model, config)


def _zero(head: nn.Module) -> None:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(head.parameters()), modifier_rank=0), torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()


def _settings(config: ModelConfig) -> PretrainedConfig:
    settings = AutoConfig.from_pretrained(config.path)
    for key in vars(settings):
        if key.endswith("dropout") or key.endswith("_pdrop"):
            setattr(settings, key, 0.0)
    return settings


def _ready_to_train(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    model.config.use_cache = False
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """A batch as the model reads it. `N` counts the response tokens of the batch, padding left out."""

    input_ids_BS: Tensor
    """Right-padded prompts and responses."""
    predictor_N: Tensor
    """Flat positions in [B * S] whose hidden state predicts each response token: one before it."""
    target_N: Tensor
    """The response tokens."""
    row_N: Tensor
    column_N: Tensor
    """Where each token's value goes in [B, T]."""
    last_B: Tensor
    """Flat position of each row's last token."""


def inputs_for(batch: Batch, *, device: torch.device) -> ModelInputs:
    """Lay a batch out for the model. The one place that knows rows are padded and positions are 1-D."""
    input_ids_BS = nn.utils.rnn.pad_sequence(list(batch.context), batch_first=True)
    width = input_ids_BS.shape[1]
    rows, columns = [], []
    for row, (tokens, prompt_length) in enumerate(zip(batch.context, batch.prompt_lengths, strict=True)):
        columns.append(torch.arange(len(tokens) - prompt_length))
        rows.append(torch.full((len(tokens) - prompt_length,), row))
    row_N, column_N = torch.cat(rows), torch.cat(columns)
    predictor_N = row_N * width + torch.tensor(batch.prompt_lengths)[row_N] + column_N - 1
    return ModelInputs(
        input_ids_BS=input_ids_BS.to(device),
        predictor_N=predictor_N.to(device),
        target_N=batch.token_ids_BT[row_N, column_N].to(device),
        row_N=row_N.to(device),
        column_N=column_N.to(device),
        last_B=(torch.arange(len(batch)) * width + torch.tensor(batch.lengths()) - 1).to(device),
    )


class TokenScorer(nn.Module):
    """Log-probs and entropies of response tokens; logits are computed at response positions only, in float32."""

    def __init__(self, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self, input_ids_BS: Tensor, predictor_N: Tensor, target_N: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Returns ([N] log-probs, [N] entropies), of logits / temperature; entropies with a gradient if asked."""
        body = self.language_model.base_model
        hidden_BSH = body(input_ids=input_ids_BS, use_cache=False).last_hidden_state
        hidden_NH = hidden_BSH.flatten(0, 1)[predictor_N]
        logits_NV = _at_least_float32(self.language_model.get_output_embeddings()(hidden_NH)) / temperature
        log_normaliser_N = logits_NV.logsumexp(dim=-1)
        logprobs_N = logits_NV.gather(1, target_N[:, None]).squeeze(1) - log_normaliser_N
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            probabilities_NV = (logits_NV - log_normaliser_N[:, None]).exp()
            entropy_N = log_normaliser_N - (probabilities_NV * logits_NV).sum(dim=-1)
        return logprobs_N, entropy_N


def score_tokens(
    scorer: nn.Module, batch: Batch, *, temperature: float, device: torch.device, entropy_gradient: bool = False
) -> TokenLogprobs:
    """`scorer` is a TokenScorer, or the DeepSpeed engine around one."""
    inputs = inputs_for(batch, device=device)
    logprobs_N, entropy_N = scorer(
        inputs.input_ids_BS, inputs.predictor_N, inputs.target_N, temperature, entropy_gradient
    )
    return TokenLogprobs(
        logprobs_BT=_in_place(logprobs_N, inputs, batch), entropy_BT=_in_place(entropy_N, inputs, batch)
    )


class ValueScorer(nn.Module):
    """What a critic expects before each response token: a number from the hidden state that predicts the token."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` is a sequence classifier with one label (`load_value_model`)."""
        super().__init__()
        self.model = model

    def forward(self, input_ids_BS: Tensor, predictor_N: Tensor) -> Tensor:
        """[N] values, in at least float32."""
        hidden_BSH = self.model.base_model(input_ids=input_ids_BS, use_cache=False).last_hidden_state
        return _at_least_float32(self.model.score(hidden_BSH.flatten(0, 1)[predictor_N])).squeeze(-1)


def score_values(scorer: nn.Module, batch: Batch, *, device: torch.device) -> Tensor:
    """[B, T]; 0 where there is no token. `scorer` is a ValueScorer, or the DeepSpeed engine around one."""
    inputs = inputs_for(batch, device=device)
    return _in_place(scorer(inputs.input_ids_BS, inputs.predictor_N), inputs, batch)


class TextScorer(nn.Module):
    """What a reward model gives for a whole text: a number from the hidden state of its last token."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` is a sequence classifier with one label (`load_value_model`)."""
        super().__init__()
        self.model = model

    def forward(self, input_ids_BS: Tensor, last_B: Tensor) -> Tensor:
        """[B] scores, in at least float32."""
        hidden_BSH = self.model.base_model(input_ids=input_ids_BS, use_cache=False).last_hidden_state
        return _at_least_float32(self.model.score(hidden_BSH.flatten(0, 1)[last_B])).squeeze(-1)


def score_texts(scorer: nn.Module, batch: Batch, *, device: torch.device) -> Tensor:
    """[B]. `scorer` is a TextScorer, or the DeepSpeed engine around one."""
    inputs = inputs_for(batch, device=device)
    return scorer(inputs.input_ids_BS, inputs.last_B)


def _in_place(value_N: Tensor, inputs: ModelInputs, batch: Batch) -> Tensor:
    return value_N.new_zeros(batch.mask_BT.shape).index_put((inputs.row_N, inputs.column_N), value_N)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
