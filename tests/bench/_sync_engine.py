"""What `sync` measures in its own process: packing and copying alone, the pause of running requests, a fresh engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from workers.config import ClusterConfig, ModelConfig, RolloutConfig, WeightSwap
from workers.records import Completion, Sampling
from workers.rollout_worker import CompletionRequest
from workers.vllm_engine import VLLMEngine
from workers.weight_sync import SharedWeights, padded_bytes

ROLLOUT = RolloutConfig(kv_cache_gib=0.5, max_running=32, max_staleness=1)
RUNNING, PROMPT_TOKENS, RESPONSE_TOKENS, SYNC_EVERY = 32, 24, 96, 16
"""Requests under way while weights change, and how often they do, in decode steps."""
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """How long running requests wait for new weights, over some syncs."""

    requests: int
    syncs: int
    decode_step_ms: float
    load_ms: float
    """Median: the weights themselves."""
    first_step_ms: float
    """Median: the first step under the new weights, which with `abort_and_resume` reads all running requests anew."""
    pause_ms: float
    """Median, from the end of the last step before to the end of the first one after."""
    pause_steps: float
    """Median, in decode steps."""
    load_steps: float
    worst_load_steps: float
    worst_pause_steps: float


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def weights_of(model: ModelConfig) -> dict[str, Tensor]:
    dtype = getattr(torch, model.precision.value)
    return dict(AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype).named_parameters())


def packing_alone(weights: Mapping[str, Tensor]) -> Callable[[], None]:
    """What vLLM does with every matrix before it computes, and nothing else: from memory that is there already."""
    from vllm import _custom_ops as ops

    matrices = [matrix.t() for matrix in fused(weights)]
    packed: list[object] = [None] * len(matrices)

    def pack() -> None:
        for index, matrix in enumerate(matrices):
            packed[index] = None
            packed[index] = ops.create_onednn_mm(matrix, 32)

    return pack


def fused(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The matrices that vLLM computes with; the head is among them."""
    matrices = []
    for name, tensor in weights.items():
        path, _, leaf = name.removesuffix(".weight").rpartition(".")
        group = next((group for group in FUSED if leaf in group), (leaf,))
        is_looked_up_alone = leaf == "embed_tokens" and "lm_head.weight" in weights
        if tensor.dim() == 2 and leaf == group[0] and not is_looked_up_alone:
            matrices.append(torch.cat([weights[f"{path}.{part}.weight"].detach() for part in group]))
    return matrices


def copying_alone(num_bytes: int) -> Callable[[], object]:
    source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
    return lambda: target.copy_(source)


def make_engine(model: ModelConfig, *, swap: WeightSwap = WeightSwap.IN_FLIGHT) -> VLLMEngine:
    return VLLMEngine(model, replace(ROLLOUT, weight_swap=swap), ClusterConfig(), seed=0)


def greedy_answer(engine: VLLMEngine, token_ids: Sequence[int], *, max_tokens: int) -> Completion:
    engine.add(_request("alone", token_ids, max_tokens=max_tokens, seed=0, temperature=0.0))
    while True:
        for _, completion in engine.step():
            return completion


def pauses(engine: VLLMEngine, model: ModelConfig, *, syncs: int) -> Pauses:
    """New weights between two steps, again and again, while requests run that no end token ends early."""
    weights, shared = weights_of(model), SharedWeights()
    version, running = 0, 0
    decode, loads, firsts = [], [], []
    random = np.random.default_rng(0)
    while len(loads) < syncs + 1:
        if not engine.is_busy():
            for running in range(RUNNING):
                tokens = random.integers(6, 100, PROMPT_TOKENS).tolist()
                engine.add(_request(str(running), tokens, max_tokens=RESPONSE_TOKENS, seed=running, temperature=1.0))
            engine.step()  # reads the prompts
        for _ in range(SYNC_EVERY):
            decode.append(timed(engine.step))
        if not engine.is_busy():
            continue
        version += 1
        manifest = shared.write(weights.items(), version=version, num_bytes=padded_bytes(weights.values()))
        loads.append(timed(lambda manifest=manifest: engine.load_weights(manifest)))
        firsts.append(timed(engine.step))
    # The first version of an engine goes through vLLM's own loaders.
    loads, firsts, step = loads[1:], firsts[1:], median(decode)
    whole = [load + first for load, first in zip(loads, firsts, strict=True)]
    return Pauses(
        requests=RUNNING,
        syncs=syncs,
        decode_step_ms=1e3 * step,
        load_ms=1e3 * median(loads),
        first_step_ms=1e3 * median(firsts),
        pause_ms=1e3 * median(whole),
        pause_steps=median(whole) / step,
        load_steps=median(loads) / step,
        worst_load_steps=max(loads) / step,
        worst_pause_steps=max(whole) / step,
    )


def _request(
    key: str, token_ids: Sequence[int], *, max_tokens: int, seed: int, temperature: float
) -> CompletionRequest:
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    return CompletionRequest(id=key, token_ids=tuple(token_ids), seed=seed, sampling=sampling)
