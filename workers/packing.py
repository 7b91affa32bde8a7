"""Models whose rows are packed: one behind the other in one long row, none of them seeing another, and a prompt that
several of them begin with there once.

Three things make that true: positions go on from the prompt in each response; attention never leaves the family of rows
that share a prompt; and in it a token sees the prompt and its own row alone. The attention is a function of our own
behind transformers' `AttentionInterface`, to which `Segments` travels through the model's own keywords.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from workers.families import Family, one_behind_the_other
from workers.records import Batch
from workers.segments import Segments

SEGMENTS = "heliostat_segments"
"""Our attention's name among those of transformers."""
ALIKE_EVERYWHERE = {"full_attention", "sliding_attention"}
"""Kinds of layers whose only way from one token to another is the attention function."""
NOT_READ = ("softcap", "s_aux", "position_bias")
"""What some architectures hand to their attention function and ours would pass over."""


class CannotPack(ValueError):
    """The architecture has another way than attention for one segment to reach the next."""


def attend_by_segment(model: nn.Module) -> None:
    """Make a transformers model, or what is wrapped around one, read packed rows.

    Raises CannotPack, by name, where that would not be exact.
    """
    model = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    reason = _why_not(model)
    if reason:
        raise CannotPack(
            f"train.packing is true, and {type(model).__name__} ({model.config.model_type}) {reason}. "
            "Set train.packing=false."
        )
    model.set_attn_implementation(SEGMENTS)


def reads_segments(model: nn.Module) -> bool:
    """Whether `attend_by_segment` was here: then rows are packed for it."""
    return model.config._attn_implementation == SEGMENTS


def _why_not(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    body = model.base_model
    if not (body._supports_attention_backend and body._can_set_attn_implementation()):
        return "does not take its attention from transformers' AttentionInterface"
    if body._is_stateful or not kinds <= ALIKE_EVERYWHERE:
        others = f" ({', '.join(sorted(kinds - ALIKE_EVERYWHERE))})" if kinds - ALIKE_EVERYWHERE else ""
        return f"has layers that carry more from token to token than attention does{others}"
    if getattr(config, "sliding_window", None) and not body._supports_flash_attn:
        return "does not tell its attention how far it may look back"
    if "position_ids" not in inspect.signature(body.forward).parameters:
        return "does not take the positions of its tokens"
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}):
        return "has positions of several dimensions"
    return None


def packed(batch: Batch, families: Sequence[Family], device: torch.device) -> Mapping[str, Tensor | Segments]:
    """What a model's body reads of a batch, as one row of all its tokens. `families` in the order of `in_order`."""
    tokens_S, positions_S = one_behind_the_other(batch, families)
    return {
        "input_ids": tokens_S[None].to(device),
        "position_ids": positions_S[None].to(device),
        "segments": Segments(families, device),
    }


def segment_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: object
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself and to its prompt. [1, heads, S, size] -> [1, S, heads, size]."""
    unread = [name for name in NOT_READ if how.get(name) is not None]
    if unread:
        raise CannotPack(f"{type(module).__name__} hands its attention {', '.join(unread)}: set train.packing=false")
    segments, scale, window = how["segments"], how.get("scaling"), how.get("sliding_window")
    if _has_kernel(query, key, value):
        return segments.by_kernel(query, key, value, scale=scale, window=window), None
    return segments.by_calls(module, query, key, value, scale=scale, window=window), None


def _has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch's own variable-length kernel takes these: half precision, on a GPU that has it."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


AttentionInterface.register(SEGMENTS, segment_attention)
