"""A model that only looks: the reference policy. Forward passes, no optimizer, no DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from workers.batches import collate, cut, scatter_rows, select
from workers.config import Device, ModelConfig
from workers.model import TokenScorer, load_language_model, score_tokens
from workers.records import Group, Update


class FrozenWorker:
    """One copy of a frozen model. A plain class: it needs Ray only to live in a process of its own."""

    def __init__(self, model: ModelConfig, device: Device, seed: int, tokens_per_micro_batch: int) -> None:
        self._device = torch.device("cuda", 0) if device is Device.CUDA else torch.device("cpu")
        self._scorer = TokenScorer(load_language_model(model, seed=seed).eval()).to(self._device)
        self._tokens_per_micro_batch = tokens_per_micro_batch

    @torch.inference_mode()
    def reference_outputs(
        self, updates: tuple[Update, ...], temperature: float, *groups: Group
    ) -> Mapping[str, np.ndarray]:
        """{"reference_logprobs_BT": [B, T] float32}, rows in the order of `updates`."""
        batch = collate([row for update in updates for row in update.rows], groups)
        pieces = []
        lengths = batch.lengths()
        for chosen in cut(lengths, tokens_per_micro_batch=self._tokens_per_micro_batch):
            scored = score_tokens(self._scorer, select(batch, chosen), temperature=temperature, device=self._device)
            pieces.append((chosen, scored.logprobs_BT))
        whole_BT = scatter_rows(pieces, shape=tuple(batch.mask_BT.shape), device=self._device)
        return {"reference_logprobs_BT": whole_BT.cpu().numpy()}
