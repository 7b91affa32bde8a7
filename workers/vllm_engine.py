"""vLLM behind the rollout engine's interface: continuous batching in the worker's own process.

Each response is a request of its own with its own seed, so its tokens do not depend on what is decoded beside it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workers.config import ClusterConfig, Device, ModelConfig, RolloutConfig, WeightSwap
from workers.records import Completion, Span, Stop, WeightManifest, WeightReceipt
from workers.rollout_worker import CompletionRequest
from workers.tokenizer import end_token_ids, load_tokenizer
from workers.tuned_weights import write_adapter
from workers.vllm_environment import CPU_ENVIRONMENT, VLLM_ENVIRONMENT
from workers.weight_sync import WeightReader, adapter_of, has_base

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

PROMPT_TOKENS_A_STEP = 8192
"""Most prompt tokens that one decoding step reads, unless the context is longer."""
CPU_BLOCK_TOKENS = 32
"""Only whole blocks of a prompt are shared by siblings: the least that vLLM's CPU kernels take, and not its default of
128, which most prompts do not fill."""
INITIAL_VERSION = 0
ADAPTER, ADAPTER_ID = "policy", 1


class VLLMEngine:
    """One vLLM engine."""

    def __init__(
        self, model: ModelConfig, rollout: RolloutConfig, cluster: ClusterConfig, *, seed: int, adapter_rank: int = 0
    ) -> None:
        """`adapter_rank`: room for an adapter that is served beside the base; 0 for none."""
        on_cpu = cluster.device is Device.CPU
        os.environ.update({**VLLM_ENVIRONMENT, **(CPU_ENVIRONMENT if on_cpu else {})})
        # vLLM reads its environment when it is imported, and takes seconds to import.
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.config import WeightTransferConfig
        from vllm.sampling_params import RequestOutputKind

        from workers import vllm_weight_transfer

        vllm_weight_transfer.register()
        self._sampling_params, self._final_only = SamplingParams, RequestOutputKind.FINAL_ONLY
        self._tokenizer = load_tokenizer(model.path)
        self._end_token_ids = list(end_token_ids(model.path, self._tokenizer))
        device_settings = (
            {
                "enforce_eager": True,
                "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
                # A prompt read in two pieces draws a token that must be taken back, and on CPU vLLM cannot rewind the
                # request's own random stream.
                "enable_chunked_prefill": False,
                "block_size": CPU_BLOCK_TOKENS,
            }
            if on_cpu
            else {"gpu_memory_utilization": rollout.gpu_memory_share, "enable_sleep_mode": True}
        )
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=model.path,
                dtype=model.precision.value,
                max_model_len=model.context_length,
                max_num_seqs=rollout.max_running,
                max_num_batched_tokens=max(PROMPT_TOKENS_A_STEP, model.context_length),
                seed=seed,
                logprobs_mode="processed_logprobs",  # after temperature: the distribution that was sampled from
                generation_config="vllm",  # no sampling defaults of the model's own
                weight_transfer_config=WeightTransferConfig(backend=vllm_weight_transfer.BACKEND),
                disable_log_stats=True,
                **({"enable_lora": True, "max_lora_rank": adapter_rank, "max_loras": 1} if adapter_rank else {}),
                **device_settings,
            )
        )
        self._engine.model_executor.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
        self._engine.set_weight_version(str(INITIAL_VERSION))
        self._served_checksum = vllm_weight_transfer.served_checksum
        self._adapter: LoRARequest | None = None
        self._keeps_cache = rollout.max_staleness > 0 and rollout.weight_swap is WeightSwap.IN_FLIGHT

    def add(self, request: CompletionRequest) -> None:
        # Keys and values of one version serve no request of another.
        salt = {"cache_salt": f"version {self._engine.get_weight_version()}"} if self._keeps_cache else {}
        self._engine.add_request(
            request.id,
            {"prompt_token_ids": list(request.token_ids), **salt},
            self._sampling_params(
                n=1,
                temperature=request.sampling.temperature,
                max_tokens=request.sampling.max_tokens,
                seed=request.seed,
                stop_token_ids=self._end_token_ids,
                logprobs=0,
                # The cheapest form: one output a request, when it has ended, and no record for each token.
                flat_logprobs=True,
                output_kind=self._final_only,
                detokenize=False,
            ),
            lora_request=self._adapter,
        )

    def step(self) -> Sequence[tuple[str, Completion]]:
        return [
            (output.request_id, _completion(output.outputs[0])) for output in self._engine.step() if output.finished
        ]

    def abort(self, request_id: str) -> int:
        processor = self._engine.output_processor
        [own] = processor.external_req_ids[request_id]
        num_tokens = processor.request_states[own].detokenizer.num_output_tokens()
        self._engine.abort_request([request_id])
        return num_tokens

    def is_busy(self) -> bool:
        return self._engine.has_unfinished_requests()

    def load_weights(self, manifest: WeightManifest) -> WeightReceipt:
        if has_base(manifest):
            call = self._engine.model_executor.collective_rpc
            call("start_weight_update")
            call("update_weights", kwargs={"update_info": {"manifest": manifest}})
            call("finish_weight_update")
            [checksum] = call(self._served_checksum)
        if manifest.adapter:
            checksum = self._load_adapter(manifest)
        self._engine.set_weight_version(str(manifest.version))
        if not self._keeps_cache:
            # Running requests give up their keys and values, and read their tokens again under the new weights.
            self._engine.reset_prefix_cache(reset_running_requests=True)
        return WeightReceipt(
            version=int(self._engine.engine_core.get_weight_version()),
            checksum=checksum,
            num_bytes=manifest.num_bytes,
        )

    def _load_adapter(self, manifest: WeightManifest) -> str:
        """The checksum of what arrived."""
        from vllm.lora.request import LoRARequest

        with WeightReader().reading(manifest) as arrived:
            tensors = adapter_of(arrived)
        with tempfile.TemporaryDirectory(prefix="heliostat-adapter-") as folder:
            write_adapter(Path(folder), tensors, manifest.adapter)
            # Without `load_inplace` the id would go on standing for the old adapter.
            self._engine.add_lora(LoRARequest(ADAPTER, ADAPTER_ID, folder, load_inplace=True))
            self._adapter = LoRARequest(ADAPTER, ADAPTER_ID, folder)
        return arrived.checksum

    def sleep(self) -> None:
        self._engine.sleep(level=2)

    def wake(self) -> None:
        self._engine.wake_up()

    def decode(self, token_ids: Sequence[int] | np.ndarray, *, show_special: bool) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=not show_special)


def _completion(output: object) -> Completion:
    """vLLM's output as a record: the sampled token's log-prob, and which weights sampled which tokens."""
    token_ids = np.array(output.token_ids, dtype=np.int32)
    # One entry a token: its own, as no other was asked for.
    assert output.logprobs.token_ids == output.token_ids
    return Completion(
        token_ids=token_ids,
        logprobs=np.array(output.logprobs.logprobs, dtype=np.float32),
        spans=tuple(
            Span(start=span.start, end=span.end, sampled=True, version=int(span.version))
            for span in output.weight_versions
        ),
        stop=Stop.END if output.finish_reason == "stop" else Stop.LENGTH,
    )
