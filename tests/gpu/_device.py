"""What a piece of work takes on a device: seconds, and memory beside what was there before."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.bench import memory

GIB = 2**30
PRODUCTS = 10
"""Timed together: a single one of a millisecond would be timed with the call that starts it."""
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What some work takes, each time."""

    seconds: float
    """The median."""
    extra_gib: float
    """Memory at the peak, less what was allocated before: of the GPU's allocator; of the whole process on a CPU."""


def taken(work: Callable[[], None], device: torch.device, *, repeats: int) -> Taken | None:
    """After one time that warms up; None where memory has no room for it."""
    with contextlib.suppress(torch.OutOfMemoryError):
        work()
        return Taken(extra_gib=_extra_gib(work, device), seconds=seconds_of(work, device, repeats=repeats))
    # Not before here: until it was suppressed, the error held what the work had allocated.
    tidy(device)
    return None


def seconds_of(work: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """The median."""
    return statistics.median(_seconds(work, device) for _ in range(repeats))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """A GPU is told what to do and not waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tidy(device: torch.device) -> None:
    """What nothing holds any more goes back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _extra_gib(work: Callable[[], object], device: torch.device) -> float:
    tidy(device)
    wait(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / GIB
    before = memory.resident()
    # Not ours to write in some containers: then the peak is the largest since the process began.
    with contextlib.suppress(OSError):
        memory.forget_peak()
    work()
    return max(0, memory.peak() - before) / GIB


def matmul_flops_per_s(size: int, device: torch.device, *, repeats: int) -> float:
    """The measured peak that all shares are of: a [size, size] product in bfloat16, at its fastest."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)

    def work() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=out)

    work()
    return PRODUCTS * 2.0 * size**3 / min(_seconds(work, device) for _ in range(repeats))


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
