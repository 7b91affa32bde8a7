"""Every comparison runs on a CPU, too, so that it is no dead code where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.gpu._device import CPU, CUDA
from tests.one_thread import one_thread  # noqa: F401  a fixture

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.fixture(params=[pytest.param(CPU, id="cpu"), pytest.param(CUDA, id="cuda", marks=[pytest.mark.gpu, no_gpu])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return request.param


@pytest.fixture(params=[pytest.param(CUDA, id="cuda", marks=no_gpu)])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """For tests that are marked `gpu` as a whole."""
    return request.param
