"""What this machine has: its GPUs and the memory that is free for a run."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

import psutil

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
QUERY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """
    Example (two GPUs of 80 GB, and 200 GB of main memory left):
        Machine(gpu_bytes=(85_520_809_984, 85_520_809_984), free_memory_bytes=200_000_000_000)
    """

    gpu_bytes: tuple[int, ...]
    """One entry a GPU that CUDA_VISIBLE_DEVICES leaves visible."""
    free_memory_bytes: int
    """Main memory that can be had without swapping."""


def this_machine() -> Machine:
    return Machine(gpu_bytes=_gpu_bytes(), free_memory_bytes=psutil.virtual_memory().available)


def _gpu_bytes() -> tuple[int, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return ()
    command = [*NVIDIA_SMI, *(["--id", visible] if visible else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S)
    except FileNotFoundError:
        return ()
    if done.returncode != 0:  # a driver without a GPU, or none behind the name: nothing can be used
        return ()
    return tuple(int(line) * 2**20 for line in done.stdout.splitlines() if line.strip().isdigit())
