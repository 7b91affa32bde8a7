"""vLLM's side of shared-memory weight transfer: a backend of its own weight-transfer API, named `shm`.

Trainers and engines of one node need nothing else, on CPU and on GPU; vLLM drives it with the same calls as its `nccl`
and `ipc` backends. Imported only in a process that runs vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from workers.records import WeightManifest
from workers.weight_sync import read_base

BACKEND = "shm"


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: every manifest says where its weights lie."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One whole version of the weights."""

    manifest: WeightManifest = field(kw_only=True)


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads a checkpoint-named stream of tensors, so fused and packed layers are rebuilt by vLLM's own loaders."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """No rendezvous."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, object]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        # Where adapters are served, vLLM's wrapped layers hand what they are given to the layer inside.
        self.model.load_weights(read_base(update_info.manifest))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        # A head tied to the embedding gets no tensor of its own, so the reload leaves it alone; but on CPU it computes
        # from a packed copy, which would stay that of the old weights.
        if self.model_config.hf_config.tie_word_embeddings:
            for module in self.model.modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def register() -> None:
    """Make the backend known to vLLM in this process."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, ShmWeightTransferEngine)
