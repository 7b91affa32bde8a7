"""Packed rows: they lie one behind the other in one long row, and none of them sees another.

Two things make that true, and both are needed: positions restart at 0 in each segment, and attention never leaves it.
The attention is a function of our own behind transformers' `AttentionInterface`; where segments begin reaches it under
the names that transformers has for flash attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

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


def packed(rows: Sequence[Tensor], device: torch.device) -> Mapping[str, Tensor | int]:
    """What a model's body reads of these rows ([T_i] int64 each), as one row of all their tokens."""
    lengths = [len(row) for row in rows]
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return {
        "input_ids": torch.cat(list(rows))[None].to(device),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None].to(device),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def segment_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: object
) -> tuple[Tensor, None]:
    """Causal attention inside of each segment. [1, heads, S, size] -> [1, S, heads, size]."""
    unread = [name for name in NOT_READ if how.get(name) is not None]
    if unread:
        raise CannotPack(f"{type(module).__name__} hands its attention {', '.join(unread)}: set train.packing=false")
    scale, window, ends = how.get("scaling"), how.get("sliding_window"), how["cu_seq_lens_q"]
    if _has_kernel(query, key, value):
        out_SHD = varlen_attn(
            *(tensor[0].transpose(0, 1) for tensor in (query, key, value)),
            ends,
            ends,
            how["max_length_q"],
            how["max_length_k"],
            scale=scale,
            # transformers counts the token itself.
            window_size=(window - 1 if window else -1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out_SHD[None], None
    lengths = ends.diff().tolist()
    pieces = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), lengths, strict=True)
    said = [
        sdpa_attention_forward(module, q, k, v, _band(length, window, q.device), scaling=scale, is_causal=True)[0]
        for q, k, v, length in pieces
    ]
    return torch.cat(said, dim=1), None


def _has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch's own variable-length kernel takes these: half precision, on a GPU that has it."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _band(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """[length, length] bool: what each token sees where it may not look back to the segment's start."""
    if not window or length <= window:
        return None
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return (back >= 0) & (back < window)


AttentionInterface.register(SEGMENTS, segment_attention)
