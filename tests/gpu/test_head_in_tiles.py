"""Log-probs in tiles are those of logits materialised in float32, and so are gradients, as far as bfloat16 goes."""

from __future__ import annotations

import pytest
import torch

from tests.gpu._device import GIB, taken
from tests.gpu._head import HeadCase, differences, made, measure_head
from workers.linear_logprobs import TILE

HALF_ULP = 2.0**-9
"""Of bfloat16, relative: what a logit is rounded by."""
MOST_GRADIENT_DIFFERENCE = 2.0**-6
"""Over the largest one: gradients of logits are rounded before they are summed, and the sums again."""


@pytest.mark.parametrize("over", [-1, 0, 1], ids=["less than a tile", "a tile", "more than a tile"])
def test_tiles_say_and_teach_what_materialised_float32_does(device: torch.device, over: int) -> None:
    # Where tiles are large, a seventh of the second one is enough to see that there are two.
    tokens, words = (size + over * (size // 7) for size in (TILE[device.type].tokens, TILE[device.type].words))
    case = HeadCase(name="", tokens=tokens, vocabulary=words, hidden=32 if device.type == "cpu" else 128)
    logprobs, gradients, largest_logit = differences(case, device, tokens=tokens)
    # The target's logit and the normaliser are rounded, each by half a unit at most.
    assert 0.0 < logprobs <= 2.0 * HALF_ULP * largest_logit
    assert 0.0 < gradients <= MOST_GRADIENT_DIFFERENCE


def test_the_bound_on_gradients_would_notice_a_token_left_out(device: torch.device) -> None:
    case = HeadCase(name="", tokens=64, vocabulary=256, hidden=32)
    hidden_NH, weight_VH, target_N = (tensor.detach() for tensor in made(case, device))
    logits_NV = (hidden_NH.float() @ weight_VH.float().T).requires_grad_(True)
    logprobs_N = logits_NV.log_softmax(-1).gather(1, target_N[:, None]).squeeze(1)
    [of_logits_NV] = torch.autograd.grad((logprobs_N * torch.linspace(-1.0, 1.0, 64, device=device)).sum(), logits_NV)
    whole, missing = of_logits_NV.T @ hidden_NH.float(), of_logits_NV[:-1].T @ hidden_NH[:-1].float()
    assert (whole - missing).abs().max() > MOST_GRADIENT_DIFFERENCE * whole.abs().max()


def test_figures_are_there_for_both_ways(device: torch.device) -> None:
    case = HeadCase(name="", tokens=200, vocabulary=300, hidden=32)
    found = measure_head(case, device, peak=1e15, repeats=1)
    for own, products in ((found.forward, 1), (found.train, 3), (found.naive_forward, 1), (found.naive_train, 3)):
        assert own.tflops * own.seconds * 1e12 == pytest.approx(products * 2 * 200 * 300 * 32)
        assert own.share == pytest.approx(own.tflops / 1e3)
    assert found.train_share_done == pytest.approx(found.train.share * 4 / 3)


def test_what_has_no_room_is_none(device: torch.device) -> None:
    def work() -> None:
        raise torch.OutOfMemoryError("no")

    assert taken(work, device, repeats=1) is None


@pytest.mark.gpu
def test_extra_memory_is_of_the_tiles_and_not_of_the_logits(gpu: torch.device) -> None:
    """Two float32 tiles and a rounded one, and gradients in float32 until all tokens have been seen."""
    case = HeadCase(name="", tokens=16_384, vocabulary=65_536, hidden=512)
    found = measure_head(case, gpu, peak=1e15, repeats=1)
    tile = TILE["cuda"].tokens * TILE["cuda"].words * (4 + 4 + 2)
    sums = 2 * 4 * case.hidden * (case.tokens + TILE["cuda"].words)
    assert found.train.extra_gib <= 1.25 * (tile + sums) / GIB
    assert found.naive_train.extra_gib >= 4 * case.tokens * case.vocabulary / GIB
