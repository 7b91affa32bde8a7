"""What the CPU that the tests run on can do."""

from __future__ import annotations

import torch


def packs_bfloat16() -> bool:
    """Whether vLLM's oneDNN computes in bfloat16 from packed matrices here."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
