"""vLLM's side of shared-memory weight transfer: a backend of its own weight-transfer API, named `shm`.

Trainers and engines of one node need nothing else, on CPU and on GPU; vLLM drives it with the same calls as its `nccl`
and `ipc` backends. Imported only in a process that runs vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.lora.layers import BaseLayerWithLoRA
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
        weights = read_base(update_info.manifest)
        self.model.load_weights((self._here(name), tensor) for name, tensor in weights)

    def _here(self, name: str) -> str:
        """The name of a checkpoint's tensor where adapters are served: each layer that can have one is wrapped."""
        path, _, kind = name.rpartition(".")
        return f"{path}.base_layer.{kind}" if path.rpartition(".")[2] in self._wrapped else name

    @cached_property
    def _wrapped(self) -> frozenset[str]:
        """Last names of wrapped layers, as checkpoints know them."""
        packed = getattr(self.model, "packed_modules_mapping", {})
        layers = [path for path, layer in self.model.named_modules() if isinstance(layer, BaseLayerWithLoRA)]
        names = {path.rpartition(".")[2] for path in layers}
        return frozenset(part for name in names for part in packed.get(name, (name,)))

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
