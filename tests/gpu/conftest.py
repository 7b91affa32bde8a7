"""Every comparison runs on a CPU, too, so that it is no dead code where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu._device import CPU, CUDA

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.fixture(params=[pytest.param(CPU, id="cpu"), pytest.param(CUDA, id="cuda", marks=[pytest.mark.gpu, no_gpu])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return request.param


@pytest.fixture(params=[pytest.param(CUDA, id="cuda", marks=no_gpu)])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """For tests that are marked `gpu` as a whole."""
    return request.param


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads of so small a model only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
