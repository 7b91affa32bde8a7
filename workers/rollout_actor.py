"""A rollout worker with awaitable verbs: one Ray actor serves any number of groups at once."""

from __future__ import annotations

import asyncio

from workers.config import ClusterConfig, EngineKind, ModelConfig, RolloutConfig
from workers.hf_engine import HFEngine
from workers.records import Group, GroupRequest, WeightManifest, WeightReceipt
from workers.rollout_worker import RolloutWorker
from workers.vllm_engine import VLLMEngine

ENGINES = {EngineKind.VLLM: VLLMEngine, EngineKind.HF: HFEngine}


class RolloutActor:
    """Holds one engine of the kind that the configuration names."""

    def __init__(
        self, model: ModelConfig, rollout: RolloutConfig, cluster: ClusterConfig, seed: int, adapter_rank: int
    ) -> None:
        engine_class = ENGINES[rollout.engine]
        self._worker = RolloutWorker(
            lambda: engine_class(model, rollout, cluster, seed=seed, adapter_rank=adapter_rank)
        )

    async def generate(self, request: GroupRequest) -> Group:
        return await asyncio.wrap_future(self._worker.generate(request))

    async def load_weights(self, manifest: WeightManifest) -> WeightReceipt:
        return await asyncio.wrap_future(self._worker.load_weights(manifest))

    async def sleep(self) -> None:
        await asyncio.wrap_future(self._worker.sleep())

    async def wake(self) -> None:
        await asyncio.wrap_future(self._worker.wake())
