"""Rollout engines serve a base and an adapter beside it: what they say is what the tuned model says, from the first
request after a sync, and the handshake proves that it arrived."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from test_engines import LONG, SHARP, TOLERANCE, ask, gap, mixed_requests, plain, plain_logprobs, request
from transformers import PreTrainedModel

from workers.config import ClusterConfig, EngineKind, ModelConfig, Quantization, RolloutConfig, TuningConfig
from workers.config import TuningMethod as Method
from workers.model import load_language_model
from workers.records import WeightManifest, WeightReceipt
from workers.rollout_actor import engine_class
from workers.rollout_worker import RolloutEngine, RolloutWorker
from workers.tuned_weights import adapter_settings, adapter_tensors, whole_weights
from workers.tuning import tune
from workers.weight_sync import SharedWeights, WeightSyncError, padded_bytes

LORA = TuningConfig(method=Method.LORA, rank=4)
QLORA = dataclasses.replace(LORA, quantization=Quantization.NF4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    worker: RolloutWorker
    engine: RolloutEngine
    folder: Path


KINDS = {"vllm": (EngineKind.VLLM, 0), "vllm that runs ahead": (EngineKind.VLLM, 1), "hf": (EngineKind.HF, 0)}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def serving(request: pytest.FixtureRequest, tied_model: Path) -> Iterator[Serving]:
    """An engine with room for an adapter of rank 8."""
    kind, staleness = request.param
    torch.set_num_threads(1)
    engines: list[RolloutEngine] = []

    def make_engine() -> RolloutEngine:
        rollout = RolloutConfig(kv_cache_gib=0.0625, max_running=32, max_staleness=staleness)
        model = ModelConfig(path=str(tied_model))
        engines.append(engine_class(kind)(model, rollout, ClusterConfig(), seed=0, adapter_rank=8))
        return engines[0]

    worker = RolloutWorker(make_engine, max_running=64)
    yield Serving(worker=worker, engine=engines[0], folder=tied_model)
    worker.close()


@pytest.fixture
def publish() -> Iterator[Callable[..., WeightManifest]]:
    """Lay an adapter out as a trainer does, its base before it where that is asked for."""
    shared = SharedWeights()

    def write(model: PreTrainedModel, *, version: int, with_base: bool = False) -> WeightManifest:
        weights = dict(whole_weights(model, merged=False)) if with_base else {}
        weights |= adapter_tensors(model)
        return shared.write(
            weights.items(),
            version=version,
            num_bytes=padded_bytes(weights.values()),
            adapter=adapter_settings(model),
        )

    yield write


def tuned(folder: Path, tuning: TuningConfig, *, seed: int) -> PreTrainedModel:
    """A policy whose adapter has learned something, another for each seed."""
    model = load_language_model(ModelConfig(path=str(folder)), seed=0).eval()
    tune(model, tuning, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.04 * torch.randn(parameter.shape, generator=generator)
    return model


def test_the_base_alone_is_served_until_the_first_adapter_comes_and_each_replaces_the_one_before(
    serving: Serving, publish: Callable[..., WeightManifest]
) -> None:
    requests = mixed_requests()
    assert gap(plain(serving.folder), ask(serving.worker, *requests), requests) < TOLERANCE
    for version in (1, 2, 3):
        model = tuned(serving.folder, LORA, seed=version)
        manifest = publish(model, version=version)
        receipt = serving.worker.load_weights(manifest).result(60)
        num_bytes = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
        assert receipt == WeightReceipt(version=version, checksum=manifest.checksum, num_bytes=num_bytes)
        assert num_bytes < 0.1 * sum(p.numel() * 4 for p in plain(serving.folder).parameters())
        # The same prompts as before: neither the old adapter nor what it left in the prefix cache may answer.
        groups = ask(serving.worker, *requests)
        assert gap(model, groups, requests) < TOLERANCE
        assert gap(plain(serving.folder), groups, requests) > 1000 * TOLERANCE
        assert {span.version for group in groups for rollout in group for span in rollout.spans} == {version}


def test_a_quantized_base_is_served_dequantized_and_stays_when_only_an_adapter_follows(
    serving: Serving, publish: Callable[..., WeightManifest]
) -> None:
    requests = mixed_requests()
    for version in (4, 5):
        model = tuned(serving.folder, QLORA, seed=version)
        serving.worker.load_weights(publish(model, version=version, with_base=version == 4)).result(60)
        assert gap(model, ask(serving.worker, *requests), requests) < TOLERANCE
    first = tuned(serving.folder, LORA, seed=6)
    serving.worker.load_weights(publish(first, version=6, with_base=True)).result(60)
    assert gap(first, ask(serving.worker, *requests), requests) < TOLERANCE, "back to the folder's own base"


def test_an_adapter_that_did_not_arrive_as_sent_is_refused_and_the_next_one_served(
    serving: Serving, publish: Callable[..., WeightManifest]
) -> None:
    kept, broken, good = (tuned(serving.folder, LORA, seed=seed) for seed in (7, 8, 9))
    serving.worker.load_weights(publish(kept, version=7)).result(60)
    manifest = publish(broken, version=8)
    with open(manifest.path, "r+b") as memory:
        memory.seek(manifest.entries[3].offset + 5)
        [byte] = memory.read(1)
        memory.seek(-1, 1)
        memory.write(bytes([byte ^ 0x10]))
    with pytest.raises(WeightSyncError, match="version 8"):
        serving.worker.load_weights(manifest).result(60)
    asked = request()
    assert gap(kept, ask(serving.worker, asked), [asked]) < TOLERANCE
    serving.worker.load_weights(publish(good, version=9)).result(60)
    assert gap(good, ask(serving.worker, asked), [asked]) < TOLERANCE


def test_a_request_behind_a_new_adapter_in_the_queue_is_sampled_from_it(
    serving: Serving, publish: Callable[..., WeightManifest]
) -> None:
    model, asked = tuned(serving.folder, LORA, seed=10), request()
    loading = serving.worker.load_weights(publish(model, version=10))
    assert gap(model, ask(serving.worker, asked), [asked]) < TOLERANCE
    assert loading.result(60).version == 10


def test_requests_under_way_finish_under_a_new_adapter_and_say_which_token_is_whose(
    serving: Serving, publish: Callable[..., WeightManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(serving.engine, "_engine"):
        pytest.skip("transformers decodes a batch to its end")
    old, new = (tuned(serving.folder, LORA, seed=seed) for seed in (11, 12))
    serving.worker.load_weights(publish(old, version=11)).result(60)
    manifest = publish(new, version=12)
    loading: list[Future[WeightReceipt]] = []
    steps, step = iter(range(1000)), serving.engine.step

    def step_and_load() -> object:
        finished = step()
        if next(steps) == 10:
            loading.append(serving.worker.load_weights(manifest))
        return finished

    requests = [request(9, draw=0), request(LONG, draw=1, sampling=SHARP)]
    with monkeypatch.context() as patch:
        patch.setattr(serving.engine, "step", step_and_load)
        groups = ask(serving.worker, *requests)
    assert loading[0].result(60).version == 12
    straddling = [
        (asked, rollout)
        for asked, group in zip(requests, groups, strict=True)
        for rollout in group
        if len(rollout.spans) == 2
    ]
    assert len(straddling) >= 4
    after = request(LONG, draw=1)
    assert gap(new, ask(serving.worker, after), [after]) < TOLERANCE, "a new request is of the new adapter alone"
    keeps_old_keys = serving.engine._keeps_cache
    for asked, rollout in straddling:
        assert [span.version for span in rollout.spans] == [11, 12]
        for model, span in list(zip((old, new), rollout.spans, strict=True))[: 1 if keeps_old_keys else 2]:
            expected = plain_logprobs(model, rollout, asked.sampling.temperature)
            own = slice(span.start, span.end)
            assert np.abs(rollout.logprobs - expected)[own].max() < TOLERANCE
