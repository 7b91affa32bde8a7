"""GRPO against the golden numbers, and its invariances."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_rows import Rows
from torch import Tensor

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.base import Outcomes
from engine.algorithms.groups import Singleton
from engine.algorithms.grpo import GRPO
from engine.algorithms.kl import KlEstimator
from engine.algorithms.settings import InvalidSetting
from workers.records import AlgorithmState, Loss, MissingOutput, ModelOutputs, Totals

HORIZON = 4
every_mode = pytest.mark.parametrize("mode", Aggregation)


def outcomes(score: list[float], group: list[int]) -> Outcomes:
    return Outcomes(
        score_B=np.array(score, dtype=np.float64),
        length_B=np.full(len(score), 3, dtype=np.int64),
        group_B=np.array(group, dtype=np.int64),
    )


GOLDEN_OUTCOMES = outcomes([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.3], [0, 0, 0, 0, 1, 1, 2])


def loss_of(algorithm: GRPO, rows: Rows, totals: Totals) -> Loss:
    return algorithm.policy_loss(rows.policy(), rows.experience(), totals, algorithm.initial_state())


def gradient_of(algorithm: GRPO, rows: Rows, totals: Totals) -> Tensor:
    rows = replace(rows, new_BT=rows.new_BT.clone().requires_grad_())
    (gradient_BT,) = torch.autograd.grad(loss_of(algorithm, rows, totals).value, rows.new_BT)
    return gradient_BT


def figures(loss: Loss) -> dict[str, float]:
    return {"value": loss.value.item()} | {name: metric.item() for name, metric in loss.metrics.items()}


# ----------------------------------------------------------------------------- advantages


@pytest.mark.parametrize(
    ("algorithm", "golden"),
    [
        (GRPO(), [1.30558, -0.783348, 0.261116, -0.783348, 0.0, 0.0, 0.0]),
        (GRPO(std_eps=1e-4), [1.30531, -0.783186, 0.261062, -0.783186, 0.0, 0.0, 0.0]),
        (GRPO(singleton=Singleton.RAW), [1.30558, -0.783348, 0.261116, -0.783348, 0.0, 0.0, 0.3]),
        (GRPO(divide_by_std=False), [0.625, -0.375, 0.125, -0.375, 0.0, 0.0, 0.0]),
    ],
    ids=["default", "larger eps", "raw singleton", "dr_grpo"],
)
def test_advantages_are_golden(algorithm: GRPO, golden: list[float]) -> None:
    advantage_B = algorithm.advantage(GOLDEN_OUTCOMES)
    assert advantage_B.dtype == np.float64
    np.testing.assert_allclose(advantage_B, golden, rtol=0, atol=2e-6)


def test_scores_equal_but_for_rounding_teach_exactly_nothing() -> None:
    advantage_B = GRPO(std_eps=0.0).advantage(outcomes([0.1 + 0.2, 0.3, 0.7, 0.7], [1, 1, 2, 2]))
    assert advantage_B.tolist() == [0.0, 0.0, 0.0, 0.0]


# ----------------------------------------------------------------------------- the loss against numbers


@pytest.mark.parametrize(
    ("mode", "golden"),
    [
        (Aggregation.TOKEN_MEAN, -0.206818),
        (Aggregation.SEQ_MEAN_TOKEN_MEAN, -0.003898),
        (Aggregation.SEQ_MEAN_TOKEN_SUM, -0.517044),
        (Aggregation.SEQ_MEAN_TOKEN_SUM_NORM, -0.129261),
    ],
)
def test_the_loss_is_golden(clip_rows: Rows, mode: Aggregation, golden: float) -> None:
    algorithm = GRPO(clip_low=0.2, clip_high=0.28, kl_coef=0.0, aggregation=mode)
    loss = loss_of(algorithm, clip_rows, clip_rows.totals(horizon=HORIZON))
    assert loss.value.item() == pytest.approx(golden, abs=2e-6)
    assert loss.metrics["policy_loss"].item() == loss.value.item()


def test_the_divergence_is_added_with_the_coefficient_of_the_state(clip_rows: Rows) -> None:
    reference_BT = torch.tensor([[-1.1, -1.4, -0.4], [-0.1, -2.0, -3.0]], dtype=torch.float64)
    rows = replace(clip_rows, reference_BT=reference_BT)
    algorithm = GRPO(clip_high=0.28, kl_coef=0.04, aggregation=Aggregation.TOKEN_MEAN)
    kl = (0.018731 + 0.0 + 0.148721 + 0.0 + 0.222119) / 5
    assert algorithm.initial_state() == AlgorithmState(kl_coef=0.04)
    for state in (algorithm.initial_state(), AlgorithmState(kl_coef=0.5)):
        loss = algorithm.policy_loss(rows.policy(), rows.experience(), rows.totals(horizon=HORIZON), state)
        assert loss.value.item() == pytest.approx(-0.206818 + state.kl_coef * kl, abs=2e-6)
        assert loss.metrics["kl"].item() == pytest.approx(kl, abs=2e-6)
        assert loss.metrics["policy_loss"].item() == pytest.approx(-0.206818, abs=2e-6)


def test_the_reference_is_asked_for_exactly_when_it_is_read(clip_rows: Rows) -> None:
    without_reference = replace(
        clip_rows.experience(), outputs=ModelOutputs(tensors={"old_logprobs_BT": clip_rows.old_BT})
    )
    totals = clip_rows.totals(horizon=HORIZON)
    free, held = GRPO(kl_coef=0.0), GRPO(kl_coef=0.01)
    assert not free.needs.reference
    assert held.needs.reference
    assert "kl" not in free.policy_loss(clip_rows.policy(), without_reference, totals, free.initial_state()).metrics
    with pytest.raises(MissingOutput, match="reference_logprobs_BT"):
        held.policy_loss(clip_rows.policy(), without_reference, totals, held.initial_state())


@every_mode
@pytest.mark.parametrize("estimator", [KlEstimator.K2, KlEstimator.K3, KlEstimator.LOW_VAR])
def test_the_gradient_is_that_of_finite_differences(
    random_rows: Rows, mode: Aggregation, estimator: KlEstimator
) -> None:
    algorithm = GRPO(aggregation=mode, kl_estimator=estimator, kl_coef=0.3)
    totals = random_rows.totals(horizon=HORIZON)

    def value(new_BT: Tensor) -> Tensor:
        return loss_of(algorithm, replace(random_rows, new_BT=new_BT), totals).value

    assert torch.autograd.gradcheck(value, random_rows.new_BT.clone().requires_grad_(), eps=1e-7, atol=1e-7)


# ----------------------------------------------------------------------------- invariances


@every_mode
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf")])
def test_junk_at_masked_positions_changes_nothing(random_rows: Rows, mode: Aggregation, junk: float) -> None:
    algorithm, totals = GRPO(aggregation=mode), random_rows.totals(horizon=HORIZON)
    spoiled = random_rows.spoiled(junk)
    assert figures(loss_of(algorithm, spoiled, totals)) == figures(loss_of(algorithm, random_rows, totals))
    gradient_BT = gradient_of(algorithm, spoiled, totals)
    assert torch.equal(gradient_BT, gradient_of(algorithm, random_rows, totals))
    assert (gradient_BT[~spoiled.mask_BT] == 0).all()
    assert (gradient_BT[spoiled.mask_BT] != 0).any()


@every_mode
def test_the_order_of_rows_changes_nothing(random_rows: Rows, mode: Aggregation) -> None:
    algorithm, totals, order = GRPO(aggregation=mode), random_rows.totals(horizon=HORIZON), [3, 0, 5, 2, 4, 1]
    permuted = random_rows.at(order)
    expected = figures(loss_of(algorithm, random_rows, totals))
    assert figures(loss_of(algorithm, permuted, totals)) == pytest.approx(expected, rel=1e-12, abs=1e-14)
    assert torch.equal(gradient_of(algorithm, permuted, totals), gradient_of(algorithm, random_rows, totals)[order])


@every_mode
def test_seven_more_columns_of_padding_change_nothing(random_rows: Rows, mode: Aggregation) -> None:
    algorithm, totals = GRPO(aggregation=mode), random_rows.totals(horizon=HORIZON)
    padded = random_rows.padded(7, float("nan"))
    expected = figures(loss_of(algorithm, random_rows, totals))
    assert figures(loss_of(algorithm, padded, totals)) == pytest.approx(expected, rel=1e-12, abs=1e-14)
    gradient_BT = gradient_of(algorithm, padded, totals)
    assert torch.equal(gradient_BT[:, :4], gradient_of(algorithm, random_rows, totals))
    assert (gradient_BT[:, 4:] == 0).all()


@every_mode
@pytest.mark.parametrize("parts", [[[0, 1, 2], [], [3, 4, 5]], [[5, 0], [2, 4, 1], [3]], [[i] for i in range(6)]])
def test_the_split_into_micro_batches_changes_nothing(
    random_rows: Rows, mode: Aggregation, parts: list[list[int]]
) -> None:
    algorithm, totals = GRPO(aggregation=mode), random_rows.totals(horizon=HORIZON)
    whole = figures(loss_of(algorithm, random_rows, totals))
    shares = [figures(loss_of(algorithm, random_rows.at(rows), totals)) for rows in parts]
    assert {name: sum(share[name] for share in shares) for name in whole} == pytest.approx(whole, rel=1e-12, abs=1e-14)

    gradient_BT = gradient_of(algorithm, random_rows, totals)
    for rows in parts:
        assert torch.equal(gradient_of(algorithm, random_rows.at(rows), totals), gradient_BT[rows])


@every_mode
def test_a_row_without_action_tokens_changes_nothing(random_rows: Rows, mode: Aggregation) -> None:
    algorithm, totals = GRPO(aggregation=mode), random_rows.totals(horizon=HORIZON)
    more = random_rows.at([0, 1, 2, 3, 4, 5, 0])
    mask_BT = more.mask_BT.clone()
    mask_BT[6] = False
    more = replace(more, mask_BT=mask_BT).spoiled(float("nan"))
    assert more.totals(horizon=HORIZON) == totals
    expected = figures(loss_of(algorithm, random_rows, totals))
    assert figures(loss_of(algorithm, more, totals)) == pytest.approx(expected, rel=1e-12, abs=1e-14)
    gradient_BT = gradient_of(algorithm, more, totals)
    assert torch.equal(gradient_BT[:6], gradient_of(algorithm, random_rows, totals))
    assert (gradient_BT[6] == 0).all()


# ----------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip_low": 1.5}, "clip_low is 1.5"),
        ({"clip_high": -0.1}, "clip_high is -0.1"),
        ({"kl_coef": math.nan}, "kl_coef is nan"),
        ({"std_eps": -1e-6}, "std_eps is -1e-06"),
        ({"kl_estimator": KlEstimator.K1}, "choose K2"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        GRPO(**settings)


def test_k1_is_allowed_where_there_is_no_divergence_in_the_loss() -> None:
    assert GRPO(kl_coef=0.0, kl_estimator=KlEstimator.K1).initial_state() == AlgorithmState(kl_coef=0.0)


def test_importing_algorithms_loads_nothing_heavy() -> None:
    code = (
        "import sys, engine.algorithms.grpo, engine.algorithms.sft; "
        "print(sorted({'torch', 'ray', 'transformers', 'vllm', 'deepspeed'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
