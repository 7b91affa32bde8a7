"""Forward and backward passes of a whole model: rows packed, prompts once, logits in tiles; and the way most have it,
rows padded, each with its prompt, all logits at once.

Suffixes: `B` rows, `L` positions of padded rows, `V` vocabulary, `N` response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tests.gpu._device import Taken, taken, tidy
from tests.gpu._models import QWEN2, REAL_GROUP, TINY_GROUP, GroupSize, batch_of, groups_of, model_flops, model_of
from tests.gpu._models import tokens_of as packed_tokens_of
from workers.batches import select
from workers.micro_batches import micro_batches, one_by_one
from workers.model import TokenScorer, inputs_for, score_tokens
from workers.packing import attend_by_segment
from workers.records import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCase:
    model: str
    group: GroupSize
    groups: int
    checkpointing: bool
    """Whether layers are computed again backwards, so that more tokens have room."""


CASES = tuple(
    PackedCase(model=model, group=REAL_GROUP, groups=groups, checkpointing=checkpointing)
    for model in ("Qwen2.5-0.5B", "Qwen2.5-1.5B")
    for groups, checkpointing in ((1, False), (4, False), (4, True), (16, True))
)
"""2,048, 8,192 and 32,768 tokens."""
TINY = (
    PackedCase(model="tiny", group=TINY_GROUP, groups=3, checkpointing=False),
    PackedCase(model="tiny", group=TINY_GROUP, groups=3, checkpointing=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayFigures:
    """All rows of a case, one way."""

    seconds: float
    tokens_per_s: float
    """Of the same tokens for both ways: every response, and every prompt once."""
    mfu: float
    """Model operations (6 x matmul parameters x tokens, and attention: see `model_flops`) a second, over the measured
    matmul peak. The same operations for both ways."""
    extra_gib: float
    """At the peak, beside weights and gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFigures:
    """A case, both ways; None where memory has no room for a way."""

    model: str
    tokens: int
    """Every prompt once: also the most that a pass of the padded way reads, its padding counted."""
    rows: int
    checkpointing: bool
    packed: WayFigures | None
    padded: WayFigures | None
    padded_passes: int


def measure_packed(case: PackedCase, model: PreTrainedModel, *, peak: float, repeats: int) -> PackedFigures:
    """`model`: of the case's sizes, in bfloat16. `peak`: operations a second."""
    device = model.device
    batch = batch_of(groups_of(case.group, groups=case.groups, vocabulary=model.config.vocab_size))
    tokens, flops = packed_tokens_of(batch), model_flops(QWEN2[case.model], batch)
    pieces = padded_pieces(batch, tokens)
    if case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    for parameter in model.parameters():
        # Where a trainer keeps them: gradients are no part of the pass.
        parameter.grad = torch.zeros_like(parameter)
    model.set_attn_implementation("sdpa")
    padded = taken(partial(_learn_padded, model, pieces), device, repeats=repeats)
    attend_by_segment(model)
    packed = taken(partial(_learn_packed, model, batch), device, repeats=repeats)
    return PackedFigures(
        model=case.model,
        tokens=tokens,
        rows=len(batch),
        checkpointing=case.checkpointing,
        packed=_figures(packed, tokens, flops, peak),
        padded=_figures(padded, tokens, flops, peak),
        padded_passes=len(pieces),
    )


def padded_pieces(batch: Batch, tokens: int) -> list[Batch]:
    """As many rows a pass as have room in this many tokens, padding counted: of the same budget as the packed way."""
    chosen = micro_batches(batch, one_by_one(range(len(batch))), tokens_per_micro_batch=tokens, packing=False)
    return [select(batch, rows) for rows in chosen]


def _figures(own: Taken | None, tokens: int, flops: float, peak: float) -> WayFigures | None:
    if own is None:
        return None
    return WayFigures(
        seconds=own.seconds,
        tokens_per_s=tokens / own.seconds,
        mfu=flops / own.seconds / peak,
        extra_gib=own.extra_gib,
    )


def _learn_packed(model: PreTrainedModel, batch: Batch) -> None:
    packed_logprobs(model, batch).mean().backward()


def _learn_padded(model: PreTrainedModel, pieces: list[Batch]) -> None:
    for piece in pieces:
        padded_logprobs(model, piece).mean().backward()


def packed_logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[N] of the response tokens, row by row, of a model that attends by segment."""
    said = score_tokens(TokenScorer(model), batch, temperature=1.0, device=model.device)
    return said.logprobs_BT[batch.mask_BT.to(model.device)]


def padded_logprobs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The same of a model as transformers has it: logits of all positions, in float32 for the cross entropy."""
    inputs = inputs_for(batch, device=model.device)
    logits_BLV = model(**inputs.text, use_cache=False).logits.float()
    return -cross_entropy(logits_BLV.flatten(0, 1)[inputs.predictor_N], inputs.target_N, reduction="none")


def differences(model: PreTrainedModel, batch: Batch) -> tuple[float, float]:
    """Between packed and padded: the largest of log-probs, and of gradients over the largest gradient.

    Leaves the model attending by segment.
    """
    found = []
    for logprobs in (padded_logprobs, packed_logprobs):
        if logprobs is packed_logprobs:
            attend_by_segment(model)
        model.zero_grad()
        logprobs_N = logprobs(model, batch)
        (logprobs_N * torch.arange(1.0, len(logprobs_N) + 1.0, device=model.device).sin()).sum().backward()
        found.append((logprobs_N.detach(), torch.cat([p.grad.flatten().float() for p in model.parameters()])))
    (said, learned), (own_said, own_learned) = found
    return float((own_said - said).abs().max()), float((own_learned - learned).abs().max() / learned.abs().max())


def measure_all(
    cases: tuple[PackedCase, ...], device: torch.device, *, peak: float, repeats: int
) -> list[PackedFigures]:
    """Each model is made once."""
    found = []
    for name in dict.fromkeys(case.model for case in cases):
        model = model_of(QWEN2[name], device)
        found += [measure_packed(own, model, peak=peak, repeats=repeats) for own in cases if own.model == name]
        del model
        tidy(device)
    return found
