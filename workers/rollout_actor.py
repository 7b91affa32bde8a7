"""A rollout worker with awaitable verbs: one Ray actor serves any number of groups at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import ray

from workers.config import ClusterConfig, EngineKind, ModelConfig, RolloutConfig
from workers.records import Group, GroupRequest, WeightManifest, WeightReceipt
from workers.rollout_worker import RolloutEngine, RolloutWorker
from workers.vitals import replaces_another
from workers.weight_sync import WeightSyncError

READINGS = 3
"""Attempts to read what is published."""


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
        self,
        model: ModelConfig,
        rollout: RolloutConfig,
        cluster: ClusterConfig,
        seed: int,
        adapter_rank: int,
        publisher: str,
    ) -> None:
        """`publisher`: Ray's name of the policy's first rank. An actor that replaces another, whose process died,
        serves what that rank published last, before it is asked anything."""
        make = engine_class(rollout.engine)
        self._worker = RolloutWorker(
            lambda: make(model, rollout, cluster, seed=seed, adapter_rank=adapter_rank), max_running=rollout.max_running
        )

        if replaces_another():
            self._serve_what_is_published(publisher)

    def _serve_what_is_published(self, publisher: str) -> None:
        """Raises WeightSyncError when it could not be read, again and again."""
        for attempt in range(READINGS):
            manifest: WeightManifest | None = ray.get(ray.get_actor(publisher).published.remote())
            if manifest is None:
                return
            try:
                receipt = self._worker.load_weights(manifest).result()
            except WeightSyncError:
                # A newer version may have been laid out over the one that was being read.
                if attempt == READINGS - 1:
                    raise
                continue
            print(f"in place of one that died: serving version {receipt.version}, {receipt.checksum}", flush=True)
            return

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
