"""GRPO against the golden numbers: what a response is worth, and the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loss_rows import Rows, doubles, judged, loss_of, outcomes

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.groups import LonelyResponse, Scale, Singleton
from engine.algorithms.grpo import GRPO
from engine.algorithms.kl import KlEstimator
from engine.algorithms.policy_gradient import KlIn
from engine.algorithms.settings import InvalidSetting
from workers.records import AlgorithmState, MissingOutput, ModelOutputs

HORIZON = 4
SCORES, GROUPS = [1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.3], [0, 0, 0, 0, 1, 1, 2]


# ----------------------------------------------------------------------------- advantages


@pytest.mark.parametrize(
    ("algorithm", "golden"),
    [
        (GRPO(), [1.30558, -0.783348, 0.261116, -0.783348, 0.0, 0.0, 0.0]),
        (GRPO(std_eps=1e-4), [1.30531, -0.783186, 0.261062, -0.783186, 0.0, 0.0, 0.0]),
        (GRPO(std_ddof=0), [1.507553, -0.904532, 0.301511, -0.904532, 0.0, 0.0, 0.0]),
        (GRPO(singleton=Singleton.RAW), [1.30558, -0.783348, 0.261116, -0.783348, 0.0, 0.0, 0.3]),
        (GRPO(scale=Scale.NONE), [0.625, -0.375, 0.125, -0.375, 0.0, 0.0, 0.0]),
    ],
    ids=["default", "larger eps", "population spread", "raw singleton", "no scale"],
)
def test_advantages_are_golden(algorithm: GRPO, golden: list[float]) -> None:
    advantage_B = algorithm.advantage(outcomes(SCORES, GROUPS))
    assert advantage_B.dtype == np.float64
    np.testing.assert_allclose(advantage_B, golden, rtol=0, atol=2e-6)


def test_measured_by_the_batch_the_spread_is_that_of_all_scores() -> None:
    """Lite PPO: the mean of the siblings, the spread of everybody."""
    advantage_B = GRPO(scale=Scale.BATCH, std_eps=0.0).advantage(outcomes(SCORES, GROUPS))
    mean = sum(SCORES) / 7
    std = (sum((score - mean) ** 2 for score in SCORES) / 6) ** 0.5
    np.testing.assert_allclose(advantage_B, np.array([0.625, -0.375, 0.125, -0.375, 0, 0, 0]) / std, rtol=1e-13)


def test_a_divergence_charged_to_the_reward_gives_the_golden_advantages(judged_rows: Rows) -> None:
    """It is taken off before siblings are compared, and normalised with the score (as verl does)."""
    algorithm = GRPO(kl_in=KlIn.REWARD, kl_coef=0.1, kl_estimator=KlEstimator.K1)
    advantage_B, metrics = judged(algorithm, judged_rows)
    golden = [1.301806, -0.785216, 0.268627, -0.785216, -0.707007, 0.707007, 0.0]
    np.testing.assert_allclose(advantage_B, golden, rtol=0, atol=2e-6)
    sequence_scores = np.array([0.96, -0.05, 0.46, -0.05, 0.95, 0.96, 0.24])
    charges = (np.array(SCORES) - sequence_scores) / 0.1
    assert metrics["reward_kl"] == pytest.approx(np.mean(charges / [5, 3, 4, 2, 5, 3, 4]))
    # In the loss instead, it leaves the scores alone.
    in_loss, _ = judged(replace(algorithm, kl_in=KlIn.LOSS, kl_estimator=KlEstimator.K2), judged_rows)
    np.testing.assert_array_equal(in_loss, algorithm.advantage(outcomes(SCORES, GROUPS)))


def test_scores_equal_but_for_rounding_teach_exactly_nothing() -> None:
    advantage_B = GRPO(std_eps=0.0).advantage(outcomes([0.1 + 0.2, 0.3, 0.7, 0.7], [1, 1, 2, 2]))
    assert advantage_B.tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("scale", [Scale.GROUP, Scale.BATCH])
def test_a_small_spread_is_not_floored(scale: Scale) -> None:
    """Pitfall 12: a variance that is held above 1e-6 makes these 120 times smaller."""
    advantage_B = GRPO(scale=scale, std_eps=0.0).advantage(outcomes([1.0, 1.00001], [0, 0]))
    np.testing.assert_allclose(advantage_B, [-(0.5**0.5), 0.5**0.5], rtol=1e-9)
    with_eps = GRPO(scale=scale).advantage(outcomes([1.0, 1.00001], [0, 0]))
    np.testing.assert_allclose(with_eps, [-0.6195, 0.6195], atol=1e-4)


def test_two_siblings_are_normalised() -> None:
    """Pitfall 31: with its own score left out of the spread, a pair's would be 0/0."""
    np.testing.assert_allclose(
        GRPO(std_eps=0.0).advantage(outcomes([3.0, 1.0], [5, 5])), [0.5**0.5, -(0.5**0.5)], rtol=1e-14
    )


def test_a_lonely_response_stops_the_run_where_that_is_asked_for() -> None:
    with pytest.raises(LonelyResponse, match=r"draw 2 .*0\.3"):
        GRPO(singleton=Singleton.ERROR).advantage(outcomes(SCORES, GROUPS))


def test_a_batch_may_be_without_any_spread() -> None:
    for scale in Scale:
        algorithm = GRPO(scale=scale, std_eps=0.0)
        assert algorithm.advantage(outcomes([0.3], [0])).tolist() == [0.0]
        assert algorithm.advantage(outcomes([0.3] * 3, [0, 0, 1])).tolist() == [0.0] * 3
        assert algorithm.advantage(outcomes([], [])).shape == (0,)


# ----------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(
    ("mode", "golden"),
    [
        (Aggregation.TOKEN_MEAN, -0.206818),
        (Aggregation.SEQ_MEAN_TOKEN_MEAN, -0.003898),
        (Aggregation.SEQ_MEAN_TOKEN_SUM, -0.517044),
        (Aggregation.SEQ_MEAN_TOKEN_SUM_NORM, -0.129261),
        # Both rows answer one prompt, whose tokens then all weigh the same.
        (Aggregation.PROMPT_MEAN, -0.206818),
    ],
)
def test_the_loss_is_golden(clip_rows: Rows, mode: Aggregation, golden: float) -> None:
    algorithm = GRPO(clip_low=0.2, clip_high=0.28, kl_coef=0.0, aggregation=mode)
    loss = loss_of(algorithm, clip_rows, clip_rows.totals(horizon=HORIZON))
    assert loss.value.item() == pytest.approx(golden, abs=2e-6)
    assert loss.metrics["policy_loss"].item() == loss.value.item()


def test_the_loss_with_a_dual_clip_is_golden(dual_rows: Rows) -> None:
    algorithm = GRPO(clip_high=0.28, clip_dual=3.0, kl_coef=0.0, aggregation=Aggregation.TOKEN_MEAN)
    loss = loss_of(algorithm, dual_rows, dual_rows.totals(horizon=HORIZON))
    assert loss.value.item() == pytest.approx(0.318646, abs=2e-6)
    assert loss.metrics["clip_dual"].item() == pytest.approx(1 / 5)


def test_the_divergence_is_added_with_the_coefficient_of_the_state(clip_rows: Rows) -> None:
    rows = replace(clip_rows, reference_BT=doubles([[-1.1, -1.4, -0.4], [-0.1, -2.0, -3.0]]))
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


# ----------------------------------------------------------------------------- settings


def test_the_defaults_are_those_of_the_paper() -> None:
    algorithm = GRPO()
    assert algorithm.aggregation is Aggregation.SEQ_MEAN_TOKEN_MEAN
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.clip_dual) == (0.2, 0.2, 0.0)
    assert (algorithm.kl_coef, algorithm.kl_in, algorithm.kl_estimator) == (0.04, KlIn.LOSS, KlEstimator.K3)
    assert (algorithm.scale, algorithm.std_ddof, algorithm.std_eps) == (Scale.GROUP, 1, 1e-6)
    assert algorithm.singleton is Singleton.ZERO
    assert not algorithm.whiten and not algorithm.dynamic_sampling.enabled
    assert algorithm.min_group_size == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"std_eps": -1e-6}, "std_eps is -1e-06"), ({"std_ddof": 2}, "std_ddof is 2")],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        GRPO(**settings)
