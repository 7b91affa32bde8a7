"""A rollout worker with awaitable verbs: one Ray actor serves any number of groups at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from workers.config import ClusterConfig, EngineKind, ModelConfig, RolloutConfig
from workers.records import Group, GroupRequest, WeightManifest, WeightReceipt
from workers.rollout_worker import RolloutEngine, RolloutWorker


def engine_class(kind: EngineKind) -> Callable[..., RolloutEngine]:
    """Only its own imports are made: each takes seconds."""
    if kind is EngineKind.VLLM:
        from workers.vllm_engine import VLLMEngine

        return VLLMEngine
    from workers.hf_engine import HFEngine

    return HFEngine


class RolloutActor:
    """Holds one engine of the kind that the configuration names."""

    def __init__(
        self, model: ModelConfig, rollout: RolloutConfig, cluster: ClusterConfig, seed: int, adapter_rank: int
    ) -> None:
        make = engine_class(rollout.engine)
        self._worker = RolloutWorker(
            lambda: make(model, rollout, cluster, seed=seed, adapter_rank=adapter_rank), max_running=rollout.max_running
        )

    async def generate(self, request: GroupRequest) -> Group:
        return await asyncio.wrap_future(self._worker.generate(request))

    async def cut_off(self, draws: Sequence[int]) -> int:
        return await asyncio.wrap_future(self._worker.cut_off(draws))

    async def load_weights(self, manifest: WeightManifest) -> WeightReceipt:
        return await asyncio.wrap_future(self._worker.load_weights(manifest))

    async def sleep(self) -> None:
        await asyncio.wrap_future(self._worker.sleep())

    async def wake(self) -> None:
        await asyncio.wrap_future(self._worker.wake())
