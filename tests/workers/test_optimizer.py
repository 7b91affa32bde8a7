"""The learning rate at points worked out by hand, and AdamW with the gradient check that DeepSpeed leaves out."""

from __future__ import annotations

import math

import pytest
import torch

from workers.config import Schedule, TrainConfig
from workers.optimizer import CheckedAdamW, learning_rate, make_optimizer

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def rates(total_updates: int, **settings: object) -> list[float]:
    config = TrainConfig(**settings)
    return [learning_rate(config, update=update, total_updates=total_updates) for update in range(total_updates)]


def test_a_constant_rate_is_constant() -> None:
    assert rates(4, learning_rate=3e-5) == [3e-5] * 4


def test_warm_up_rises_to_the_full_rate_at_its_last_update_and_starts_above_zero() -> None:
    assert rates(6, learning_rate=1.0, warmup_updates=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_linear_schedule_falls_by_equal_parts_after_warm_up() -> None:
    found = rates(10, learning_rate=2.0, warmup_updates=2, schedule=Schedule.LINEAR)
    assert found == pytest.approx([1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25])


def test_a_linear_schedule_ends_at_its_final_share() -> None:
    config = TrainConfig(learning_rate=2.0, schedule=Schedule.LINEAR, final_learning_rate_share=0.1)
    # Halfway between 2 and 0.2, at its end, and far behind it.
    found = [learning_rate(config, update=update, total_updates=8) for update in (4, 8, 100)]
    assert found == pytest.approx([1.1, 0.2, 0.2])


def test_a_cosine_schedule_passes_the_points_of_a_cosine() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_updates=1, schedule=Schedule.COSINE, final_learning_rate_share=0.2)
    found = [learning_rate(config, update=update, total_updates=13) for update in (0, 1, 4, 5, 7, 9, 13, 50)]
    # cos of 0, 45, 60, 90, 120, 180 degrees, from 1 down to 0.2.
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5))
    assert found == pytest.approx([1.0, 1.0, quarter, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_a_run_that_is_all_warm_up_never_divides_by_zero() -> None:
    assert rates(2, learning_rate=1.0, warmup_updates=2, schedule=Schedule.LINEAR) == [0.5, 1.0]


def train(optimizer_of: object, gradients: list[torch.Tensor], *, clip: float = 0.0) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = optimizer_of([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        if clip:
            torch.nn.utils.clip_grad_norm_([weight], clip)
        optimizer.step()
    return weight.detach()


GOOD = [torch.tensor([3.0, 0.0, -4.0]), torch.tensor([0.01, 0.02, 0.03]), torch.tensor([-6.0, 8.0, 0.0])]


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_checked_adamw_is_adamw_behind_clip_grad_norm(clip: float) -> None:
    checked = train(lambda weights: CheckedAdamW(weights, max_grad_norm=clip, **SETTINGS), GOOD)
    assert torch.equal(checked, train(lambda weights: torch.optim.AdamW(weights, **SETTINGS), GOOD, clip=clip))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_leaves_weights_and_moments_as_they_were(bad: float) -> None:
    broken = torch.tensor([0.0, bad, 1.0])
    with_it = train(lambda weights: CheckedAdamW(weights, max_grad_norm=1.0, **SETTINGS), [GOOD[0], broken, *GOOD[1:]])
    assert torch.equal(with_it, train(lambda weights: CheckedAdamW(weights, max_grad_norm=1.0, **SETTINGS), GOOD))


def test_the_norm_is_that_of_all_parameters_before_clipping_and_overflow_lasts_one_step() -> None:
    weights = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(3)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    optimizer = CheckedAdamW(weights, max_grad_norm=0.5, **SETTINGS)
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    optimizer.step()
    assert (optimizer._global_grad_norm, optimizer.overflow) == (5.0, False)
    assert weights[2].item() == 1.0, "a parameter without a gradient stays"
    weights[0].grad = torch.tensor([math.inf, 0.0])
    optimizer.step()
    assert optimizer.overflow
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    optimizer.step()
    assert (optimizer._global_grad_norm, optimizer.overflow) == (5.0, False)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_optimizer_is_told_every_setting(stage: int) -> None:
    config = TrainConfig(zero_stage=stage, learning_rate=0.1, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.3)
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], config)
    told = {key: optimizer.param_groups[0][key] for key in ("lr", "betas", "eps", "weight_decay")}
    assert told == {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.3}
    assert isinstance(optimizer, CheckedAdamW) is (stage == 0)


def test_a_warm_up_may_be_a_share_of_all_updates() -> None:
    def rates(**settings: float) -> list[float]:
        config = TrainConfig(learning_rate=1.0, **settings)
        return [learning_rate(config, update=update, total_updates=10) for update in range(5)]

    assert rates(warmup_share=0.35) == rates(warmup_updates=4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(warmup_share=0.1, warmup_updates=2) == rates(warmup_updates=2), "the longer one counts"
