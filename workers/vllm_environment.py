"""What vLLM reads from the environment of its process, before it is imported. Import-light."""

from __future__ import annotations

VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine stays in this process: requests stream without a second hop
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads are ours to set, per worker
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "1",
}
CPU_ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1"}
"""On CPU the first request with log-probs would compile C++ for many seconds."""
