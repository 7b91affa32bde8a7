"""vLLM's side of shared-memory weight transfer: a backend of its own weight-transfer API, named `shm`.

Trainers and engines of one node need nothing else, on CPU and on GPU; vLLM drives it with the same calls as its `nccl`
and `ipc` backends. Imported only in a process that runs vLLM.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from workers.records import WeightManifest
from workers.vllm_direct_load import Piece, compared, pieces_of
from workers.weight_sync import WeightReader, base_of

BACKEND = "shm"
logger = logging.getLogger(__name__)


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: every manifest says where its weights lie."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One whole version of the weights."""

    manifest: WeightManifest = field(kw_only=True)


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Packs what has changed straight from shared memory; what it does not know how to, vLLM's own loaders rebuild."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """No rendezvous."""
        self._reader = WeightReader()
        self._pieces: tuple[Piece, ...] = ()
        self._piece_names: frozenset[str] = frozenset()
        self.checksum = ""

    def start_weight_update(self) -> None:
        """A version comes as a whole, or not at all."""

    @torch.no_grad()
    def update_weights(self, update_info: dict[str, object]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        with self._reader.reading(update_info.manifest) as arrived:
            base = base_of(arrived)
            if self._piece_names == base.keys():
                for piece in self._pieces:
                    if not arrived.changed.isdisjoint(piece.sources):
                        piece.load(base)
            else:
                self._rebuild(base)
        self.checksum = arrived.checksum

    def _rebuild(self, base: dict[str, Tensor]) -> None:
        """By vLLM's own loaders, which tell beside it whether the next version can do without them."""
        # Where adapters are served, the base comes once at most.
        is_direct = self.device.type == "cpu" and self.vllm_config.lora_config is None
        pieces = pieces_of(self.model, base.keys()) if is_direct else ()
        initialize_layerwise_reload(self.model)
        with compared(pieces, base) as differing:
            # Where adapters are served, vLLM's wrapped layers hand what they are given to the layer inside.
            self.model.load_weights(base.items())
            finalize_layerwise_reload(self.model, self.model_config)
        self._pack_tied_head()
        if differing:
            logger.warning("every version takes the slow way: vLLM puts %s elsewhere than expected", differing[:5])
            pieces = ()
        self._pieces = pieces
        self._piece_names = frozenset(base) if pieces else frozenset()

    def _pack_tied_head(self) -> None:
        # A head tied to the embedding gets no tensor of its own, so the reload leaves it alone; but on CPU it computes
        # from a packed copy, which would stay that of the old weights.
        if self.model_config.hf_config.tie_word_embeddings:
            for module in self.model.modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

    def shutdown(self) -> None:
        """The memory is unmapped with the engine."""


def served_checksum(worker: Any) -> str:
    """Of what a vLLM worker was given last, as it arrived there."""
    return worker.weight_transfer_engine.checksum


def register() -> None:
    """Make the backend known to vLLM in this process."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, ShmWeightTransferEngine)
