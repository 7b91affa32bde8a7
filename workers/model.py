"""A Hugging Face model that answers one question: how likely is each token of these responses, or, as a critic, what
is to be expected before each of them?

Right-padded rows under causal attention need no attention mask: a real token never looks at the padding behind it.
That keeps the fast causal kernel and is exact. A model that attends by segment (`workers/packing.py`) gets its rows
packed instead; nothing but `inputs_for` knows the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

from workers.batches import each_with_its_own_prompt
from workers.config import ModelConfig, Precision, Weights
from workers.embedding_noise import EmbeddingNoise
from workers.families import Places, families_of, places_of
from workers.heads import head_terms
from workers.linear_logprobs import linear_logprobs
from workers.packing import packed, reads_segments
from workers.records import Batch, TokenLogprobs
from workers.segments import Segments

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
    settings.pad_token_id = padding_of(settings)
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


def padding_of(settings: PretrainedConfig) -> int:
    """A padding token that no text ends in.

    transformers reads a score at the last token that is not padding: where padding is the end token, as many chat
    models have it, that would be one token before the end.
    """
    ends = {settings.eos_token_id} if isinstance(settings.eos_token_id, int) else set(settings.eos_token_id or ())
    candidates = (settings.pad_token_id, settings.bos_token_id, *range(len(ends) + 1))
    return next(token for token in candidates if token is not None and token not in ends)


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


Text = Mapping[str, Tensor | Segments]
"""What a model's body reads, by the names of its own arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """A batch as the model reads it. `N` counts the response tokens of the batch, padding left out; `S` is the width of
    the padded rows, or of the one row that all of them are packed into."""

    text: Text
    """Prompts and responses."""
    places: Places
    predictor_N: Tensor
    """Flat positions in [B * S] whose hidden state predicts each response token: the token before it, in its row."""
    target_N: Tensor
    """The response tokens."""
    row_N: Tensor
    column_N: Tensor
    """Where each token's value goes in [B, T]."""
    last_B: Tensor
    """Flat position of each row's last token."""


def inputs_for(batch: Batch, *, device: torch.device, packing: bool = False) -> ModelInputs:
    """Lay a batch out for the model. The one place that knows how rows lie and that positions are 1-D."""
    lengths = torch.tensor(batch.lengths())
    prompts = torch.tensor(batch.prompt_lengths)
    responses = lengths - prompts
    if packing:
        families = Segments.in_order(families_of(batch))
        text, places = packed(batch, families, device), places_of(families)
    else:
        text = {"input_ids": _padded(batch.context).to(device)}
        start_B = torch.arange(len(batch)) * int(lengths.max())
        places = Places(prompt_B=start_B, response_B=start_B + prompts)
    row_N = torch.arange(len(batch)).repeat_interleave(responses)
    column_N = torch.arange(len(row_N)) - (responses.cumsum(0) - responses)[row_N]
    # A response's first token is predicted from the prompt's last, which may lie far before it.
    before_N = places.response_B[row_N] + column_N - 1
    predictor_N = before_N.where(column_N > 0, (places.prompt_B + prompts - 1)[row_N])
    return ModelInputs(
        text=text,
        places=places,
        predictor_N=predictor_N.to(device),
        target_N=batch.token_ids_BT[row_N, column_N].to(device),
        row_N=row_N.to(device),
        column_N=column_N.to(device),
        last_B=(places.response_B + responses - 1).to(device),
    )


def noise_for(inputs: ModelInputs, batch: Batch, noise: EmbeddingNoise, *, width: int) -> Tensor:
    """[B, S, width], or [1, S, width] packed: what is added to the embeddings of the inputs' tokens.

    No two rows share a prompt: each has a noise of its own there, too.
    """
    shape = inputs.text["input_ids"].shape
    noise_NH = torch.zeros(shape.numel(), width)
    for row, (start, length) in enumerate(zip(inputs.places.prompt_B.tolist(), batch.lengths(), strict=True)):
        noise_NH[start : start + length] = noise.of_row(row, length=length, width=width)
    return noise_NH.view(*shape, width).to(inputs.text["input_ids"].device)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


class Scorer(nn.Module):
    """A model that is asked about the tokens of a batch, at the positions that matter."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def packing(self) -> bool:
        """Whether rows are packed for this model."""
        return reads_segments(self.model)

    @property
    def embedding_width(self) -> int:
        return self.model.get_input_embeddings().embedding_dim

    def read_directly(self) -> Iterator[nn.Parameter]:
        """Parameters that are read without a call of the module that owns them."""
        return iter(())

    def _hidden(self, text: Text, noise_BSH: Tensor | None = None) -> Tensor:
        """[B * S, hidden]: what the model's body makes of each token and of all before it in its row."""
        if noise_BSH is not None:
            embedded_BSH = self.model.get_input_embeddings()(text["input_ids"])
            others = {name: value for name, value in text.items() if name != "input_ids"}
            text = {"inputs_embeds": embedded_BSH + noise_BSH.to(embedded_BSH.dtype), **others}
        return self.model.base_model(**text, use_cache=False).last_hidden_state.flatten(0, 1)


class TokenScorer(Scorer):
    """Log-probs and entropies of response tokens; logits are computed at response positions only, a tile at a time."""

    def read_directly(self) -> Iterator[nn.Parameter]:
        return self.model.get_output_embeddings().parameters()

    def forward(
        self,
        text: Text,
        noise_BSH: Tensor | None,
        predictor_N: Tensor,
        target_N: Tensor,
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """Returns ([N] log-probs, [N] entropies), of logits / temperature; entropies with a gradient if asked."""
        terms, bias_V = head_terms(self.model.get_output_embeddings(), self._hidden(text, noise_BSH)[predictor_N])
        logprobs_N, entropy_N = linear_logprobs(
            terms, bias_V, target_N, temperature=temperature, entropy_gradient=entropy_gradient
        )
        return logprobs_N, entropy_N


def score_tokens(
    scorer: TokenScorer,
    batch: Batch,
    *,
    temperature: float,
    device: torch.device,
    entropy_gradient: bool = False,
    noise: EmbeddingNoise | None = None,
) -> TokenLogprobs:
    """`scorer` is a TokenScorer, or the DeepSpeed engine around one."""
    if noise is not None:
        batch = each_with_its_own_prompt(batch)
    inputs = inputs_for(batch, device=device, packing=scorer.packing)
    noise_BSH = None
    if noise is not None:
        noise_BSH = noise_for(inputs, batch, noise, width=scorer.embedding_width)
    logprobs_N, entropy_N = scorer(
        inputs.text, noise_BSH, inputs.predictor_N, inputs.target_N, temperature, entropy_gradient
    )
    return TokenLogprobs(
        logprobs_BT=_in_place(logprobs_N, inputs, batch), entropy_BT=_in_place(entropy_N, inputs, batch)
    )


class ValueScorer(Scorer):
    """What a critic (`load_value_model`) expects before each response token: a number from the hidden state that
    predicts the token."""

    def forward(self, text: Text, predictor_N: Tensor) -> Tensor:
        """[N] values, in at least float32."""
        return _at_least_float32(self.model.score(self._hidden(text)[predictor_N])).squeeze(-1)


def score_values(scorer: ValueScorer, batch: Batch, *, device: torch.device) -> Tensor:
    """[B, T]; 0 where there is no token. `scorer` is a ValueScorer, or the DeepSpeed engine around one."""
    inputs = inputs_for(batch, device=device, packing=scorer.packing)
    return _in_place(scorer(inputs.text, inputs.predictor_N), inputs, batch)


class TextScorer(Scorer):
    """What a reward model (`load_value_model`) gives for a whole text: a number from the hidden state of its last
    token."""

    def forward(self, text: Text, last_B: Tensor) -> Tensor:
        """[B] scores, in at least float32."""
        return _at_least_float32(self.model.score(self._hidden(text)[last_B])).squeeze(-1)


def score_texts(scorer: TextScorer, batch: Batch, *, device: torch.device) -> Tensor:
    """[B]. `scorer` is a TextScorer, or the DeepSpeed engine around one."""
    inputs = inputs_for(batch, device=device, packing=scorer.packing)
    return scorer(inputs.text, inputs.last_B)


def _in_place(value_N: Tensor, inputs: ModelInputs, batch: Batch) -> Tensor:
    return value_N.new_zeros(batch.mask_BT.shape).index_put((inputs.row_N, inputs.column_N), value_N)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
