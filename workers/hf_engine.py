"""transformers behind the rollout engine's interface: a decoding loop that runs anywhere PyTorch does.

Requests that wait are decoded together, left-padded, until the last of them has ended; each row draws from a generator
of its own, so its randomness does not depend on what is decoded beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from workers.config import ClusterConfig, Device, ModelConfig, RolloutConfig
from workers.model import load_language_model
from workers.records import Completion, Span, Stop, WeightManifest, WeightReceipt
from workers.rollout_worker import CompletionRequest
from workers.tokenizer import end_token_ids, load_tokenizer
from workers.tuned_weights import serve_adapter
from workers.weight_sync import WeightReader, WeightSyncError, adapter_of, is_of_adapter


@dataclass(slots=True)
class _Row:
    """One response in the making."""

    request: CompletionRequest
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: Stop | None = None


class HFEngine:
    """One transformers model that samples."""

    def __init__(
        self, model: ModelConfig, rollout: RolloutConfig, cluster: ClusterConfig, *, seed: int, adapter_rank: int = 0
    ) -> None:
        """`adapter_rank` is what vLLM has to know; here an adapter needs no room beforehand."""
        self._device = torch.device("cuda", 0) if cluster.device is Device.CUDA else torch.device("cpu")
        self._model = load_language_model(model, seed=seed).eval().to(self._device)
        # By the checkpoint's names, which an adapter around them changes.
        self._base = dict(self._model.named_parameters())
        self._tokenizer = load_tokenizer(model.path)
        self._end_token_ids = frozenset(end_token_ids(model.path, self._tokenizer))
        self._max_running = rollout.max_running
        self._waiting: list[CompletionRequest] = []
        self._reader = WeightReader()
        self._version = 0

    def add(self, request: CompletionRequest) -> None:
        self._waiting.append(request)

    def is_busy(self) -> bool:
        return bool(self._waiting)

    def abort(self, request_id: str) -> int:
        """Nothing is written of what waits."""
        self._waiting = [request for request in self._waiting if request.id != request_id]
        return 0

    @torch.inference_mode()
    def step(self) -> Sequence[tuple[str, Completion]]:
        """Decode what waits, as one batch, to its end."""
        requests, self._waiting = self._waiting[: self._max_running], self._waiting[self._max_running :]
        if not requests:
            return []
        rows = [_Row(request=request, generator=torch.Generator().manual_seed(request.seed)) for request in requests]
        width = max(len(row.request.token_ids) for row in rows)
        token_ids_BS = torch.zeros(len(rows), width, dtype=torch.long)
        attention_BS = torch.zeros(len(rows), width, dtype=torch.long)
        for index, row in enumerate(rows):
            prompt = torch.tensor(row.request.token_ids)
            token_ids_BS[index, width - len(prompt) :] = prompt
            attention_BS[index, width - len(prompt) :] = 1
        cache = DynamicCache(config=self._model.config)
        position_BS = (attention_BS.cumsum(dim=1) - 1).clamp(min=0)
        while any(row.stop is None for row in rows):
            logits_BV = self._model(
                input_ids=token_ids_BS.to(self._device),
                attention_mask=attention_BS.to(self._device),
                position_ids=position_BS.to(self._device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen_B = torch.tensor(
                [self._sample(row, logits_V) for row, logits_V in zip(rows, logits_BV.float().cpu(), strict=True)]
            )
            token_ids_BS = chosen_B[:, None]
            attention_BS = torch.cat([attention_BS, torch.ones(len(rows), 1, dtype=torch.long)], dim=1)
            position_BS = position_BS[:, -1:] + 1
        return [(row.request.id, self._completion(row)) for row in rows]

    def _sample(self, row: _Row, logits_V: Tensor) -> int:
        """The row's next token, recorded with its log-prob under the distribution it is drawn from."""
        if row.stop is not None:
            return 0  # decoded on as padding until the batch has ended
        sampling = row.request.sampling
        greedy = sampling.temperature == 0
        logprobs_V = (logits_V if greedy else logits_V / sampling.temperature).log_softmax(dim=-1)
        if greedy:
            token = int(logits_V.argmax())
        else:
            token = int(torch.multinomial(logprobs_V.exp(), 1, generator=row.generator))
        row.token_ids.append(token)
        row.logprobs.append(float(logprobs_V[token]))
        if token in self._end_token_ids:
            row.stop = Stop.END
        elif len(row.token_ids) == sampling.max_tokens:
            row.stop = Stop.LENGTH
        return token

    def _completion(self, row: _Row) -> Completion:
        assert row.stop is not None
        return Completion(
            token_ids=np.array(row.token_ids, dtype=np.int32),
            logprobs=np.array(row.logprobs, dtype=np.float32),
            spans=(Span(start=0, end=len(row.token_ids), sampled=True, version=self._version),),
            stop=row.stop,
        )

    @torch.no_grad()
    def load_weights(self, manifest: WeightManifest) -> WeightReceipt:
        sent = {entry.name for entry in manifest.entries if not is_of_adapter(entry.name)}
        if sent and sent != set(self._base):
            raise WeightSyncError(f"parameters differ from the trainer's: {sorted(sent ^ set(self._base))[:5]}")
        with self._reader.reading(manifest) as arrived:
            for name in arrived.changed & sent:
                self._base[name].copy_(arrived.tensors[name])
            if manifest.adapter:
                serve_adapter(self._model, adapter_of(arrived), manifest.adapter)
        self._version = manifest.version
        return WeightReceipt(version=self._version, checksum=arrived.checksum, num_bytes=manifest.num_bytes)

    def sleep(self) -> None:
        self._model.to("cpu")

    def wake(self) -> None:
        self._model.to(self._device)

    def decode(self, token_ids: Sequence[int] | np.ndarray, *, show_special: bool) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=not show_special)
