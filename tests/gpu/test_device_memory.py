"""What is told of a GPU's memory after a verb is of that verb."""

from __future__ import annotations

import pytest
import torch

from tests.gpu._device import GIB
from tests.gpu._step import TINY, VERBS, measure_step
from workers.memory import Peaks

BIG = 2**28
"""Bytes."""


@pytest.mark.gpu
def test_a_known_allocation_is_in_its_own_verbs_peak_alone(gpu: torch.device) -> None:
    peaks, kept = Peaks(), torch.zeros(1, device=gpu)
    with peaks.of("big"):
        torch.empty(BIG, dtype=torch.uint8, device=gpu)
    with peaks.of("rest"):
        kept.add_(1)
    found = peaks.take()
    assert found["rest_device_gib"] > 0.0
    assert found["big_device_gib"] - found["rest_device_gib"] == pytest.approx(BIG / GIB, rel=0.01)


@pytest.mark.gpu
def test_every_verb_of_a_step_tells_what_it_took_on_the_gpu(gpu: torch.device) -> None:
    found = measure_step(TINY[0], gpu, peak=1e15, repeats=1)
    assert found is not None
    assert all(found.verbs.peaks_gib[f"{verb}_device_gib"] > 0.0 for verb in VERBS)
