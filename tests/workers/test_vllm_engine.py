"""On a CPU too, siblings share what is known of their prompt, and answer as they would alone."""

import numpy as np
import pytest

from workers.config import ClusterConfig, ModelConfig, RolloutConfig
from workers.records import Completion, Sampling
from workers.rollout_worker import CompletionRequest
from workers.vllm_engine import CPU_BLOCK_TOKENS, VLLMEngine

PROMPT = tuple(5 + number % 70 for number in range(3 * CPU_BLOCK_TOKENS + 9))


@pytest.fixture(scope="module")
def engine() -> VLLMEngine:
    rollout = RolloutConfig(kv_cache_gib=0.0625, max_running=8)
    return VLLMEngine(ModelConfig(), rollout, ClusterConfig(), seed=0)


def answered(engine: VLLMEngine, samples: range) -> dict[str, Completion]:
    engine._engine.reset_prefix_cache()
    for sample in samples:
        sampling = Sampling(temperature=1.0, max_tokens=8)
        engine.add(CompletionRequest(id=str(sample), token_ids=PROMPT, seed=sample, sampling=sampling))
    done = {}
    while engine.is_busy():
        done |= dict(engine.step())
    return done


def test_a_prompt_is_read_once_for_all_siblings(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, step = {}, engine._engine.step

    def watched() -> list:
        outputs = step()
        cached.update({output.request_id.split("-")[0]: output.num_cached_tokens for output in outputs})
        return outputs

    monkeypatch.setattr(engine._engine, "step", watched)
    answered(engine, range(4))
    whole_blocks = len(PROMPT) // CPU_BLOCK_TOKENS * CPU_BLOCK_TOKENS
    assert cached == {"0": 0, "1": whole_blocks, "2": whole_blocks, "3": whole_blocks}


def test_a_sibling_answers_as_it_does_alone(engine: VLLMEngine) -> None:
    together = answered(engine, range(4))
    for sample in range(4):
        alone = answered(engine, range(sample, sample + 1))[str(sample)]
        assert together[str(sample)].token_ids.tolist() == alone.token_ids.tolist()
        assert np.abs(together[str(sample)].logprobs - alone.logprobs).max() < 1e-5
