"""A model that only looks: the reference policy. Forward passes, no optimizer, no DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from workers.batches import collate, scatter_rows, select
from workers.config import Device, ModelConfig
from workers.file_entry import FileEntry
from workers.micro_batches import micro_batches, one_by_one
from workers.model import TokenScorer, load_language_model, score_tokens
from workers.packing import attend_by_segment
from workers.records import Group, Update, WeightManifest
from workers.tuning import merge_adapters
from workers.weight_sync import read_weights

REFERENCE_FILE = "reference.safetensors"


class FrozenWorker:
    """One copy of a frozen model. A plain class: it needs Ray only to live in a process of its own."""

    def __init__(
        self,
        model: ModelConfig,
        device: Device,
        seed: int,
        tokens_per_micro_batch: int,
        packing: bool = False,
        adapters: Sequence[str] = (),
    ) -> None:
        """`adapters` of earlier runs are merged into the model, in this order."""
        self._device = torch.device("cuda", 0) if device is Device.CUDA else torch.device("cpu")
        language_model = load_language_model(model, seed=seed)
        merge_adapters(language_model, adapters)
        if packing:
            attend_by_segment(language_model)
        self._scorer = TokenScorer(language_model.eval()).to(self._device)
        self._tokens_per_micro_batch, self._packing = tokens_per_micro_batch, packing

    @torch.inference_mode()
    def reference_outputs(
        self, updates: tuple[Update, ...], temperature: float, *groups: Group
    ) -> Mapping[str, np.ndarray]:
        """{"reference_logprobs_BT": [B, T] float32}, rows in the order of `updates`."""
        batch = collate([row for update in updates for row in update.rows], groups)
        pieces = []
        for chosen in micro_batches(
            batch,
            one_by_one(range(len(batch))),
            tokens_per_micro_batch=self._tokens_per_micro_batch,
            packing=self._packing,
        ):
            scored = score_tokens(self._scorer, select(batch, chosen), temperature=temperature, device=self._device)
            pieces.append((chosen, scored.logprobs_BT))
        whole_BT = scatter_rows(pieces, shape=tuple(batch.mask_BT.shape), device=self._device)
        return {"reference_logprobs_BT": whole_BT.cpu().numpy()}

    @torch.no_grad()
    def follow(self, manifest: WeightManifest, share: float) -> None:
        """Every weight moves towards the policy's of this manifest: by all of the way with a share of 1."""
        own = dict(self._scorer.model.named_parameters())
        for name, tensor in read_weights(manifest):
            own[name].lerp_(tensor.to(own[name]), share)

    def save(self, folder: Path) -> tuple[FileEntry, ...]:
        """The weights, for a reference that has moved since the run began. Nothing is told of their file: it is
        safetensors' to write."""
        own = self._scorer.model.named_parameters()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in own}, folder / REFERENCE_FILE)
        return ()

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """The other half of `save`."""
        own = dict(self._scorer.model.named_parameters())
        for name, tensor in load_file(folder / REFERENCE_FILE).items():
            own[name].copy_(tensor)
