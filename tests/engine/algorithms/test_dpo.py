"""DPO and its kin against golden numbers, and against what each is at its ends."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lesson_rows import PAIR, each_alone, figures, golden_pairs, gradient, loss_of, random_rows, rows_of
from loss_rows import assert_near

from engine.algorithms.dpo import DPO, LossType, Reduction
from engine.algorithms.settings import InvalidSetting

GOLDEN = {
    "sigmoid": (DPO(), [0.620957, 0.825939]),
    "cdpo": (DPO(label_smoothing=0.1), [0.635957, 0.800939]),
    "robust": (DPO(loss_type=LossType.ROBUST, label_smoothing=0.1), [0.602207, 0.857189]),
    "hinge": (DPO(loss_type=LossType.HINGE), [0.85, 1.25]),
    # Pitfall 28: per-token means, unless a sum is asked for.
    "ipo": (DPO(loss_type=LossType.IPO), [22.246944, 28.890625]),
    "ipo, summed": (DPO(loss_type=LossType.IPO, reduction=Reduction.SUM), [12.25, 56.25]),
}


@pytest.mark.parametrize(("objective", "golden"), GOLDEN.values(), ids=GOLDEN)
def test_golden_losses(objective: DPO, golden: list[float]) -> None:
    assert_near(each_alone(objective, golden_pairs()), golden)
    assert figures(loss_of(objective, golden_pairs(), golden_pairs().totals()))["value"] == pytest.approx(
        sum(golden) / 2, abs=2e-6
    )


def test_golden_figures() -> None:
    told = figures(loss_of(DPO(), golden_pairs(), golden_pairs().totals()))
    assert told["margin"] == pytest.approx((0.15 - 0.25) / 2)
    assert told["accuracy"] == 0.5
    assert told["rewards/chosen"] == pytest.approx(0.1 * (1 - 1) / 2)
    assert told["rewards/rejected"] == pytest.approx(0.1 * (-0.5 + 1.5) / 2)
    assert told["logps/chosen"] == pytest.approx(-15) and told["logps/rejected"] == pytest.approx(-15)


@pytest.mark.parametrize("loss_type", [LossType.SIGMOID, LossType.ROBUST])
def test_a_policy_that_is_its_reference_knows_nothing(loss_type: LossType) -> None:
    rows = random_rows(PAIR * 4)
    rows = replace(rows, reference_BT=rows.logprobs_BT)
    for dtype in (torch.float64, torch.float32):
        own = replace(rows, logprobs_BT=rows.logprobs_BT.to(dtype), reference_BT=rows.reference_BT.to(dtype))
        told = figures(loss_of(DPO(loss_type=loss_type), own, own.totals()))
        assert told["value"] == torch.tensor(2.0, dtype=dtype).log().item()
        assert told["margin"] == told["rewards/chosen"] == told["rewards/rejected"] == 0
        assert told["accuracy"] == 0  # a tie is no success


def test_the_gradient_of_a_fresh_pair_is_half_of_beta_on_each_token() -> None:
    rows = random_rows(PAIR)
    rows = replace(rows, reference_BT=rows.logprobs_BT)
    pull_BT = gradient(lambda own: loss_of(DPO(beta=0.4), own, own.totals()).value, rows)
    signs = torch.tensor([[-0.2], [0.2]], dtype=torch.float64)
    torch.testing.assert_close(pull_BT, signs.expand(pull_BT.shape).where(rows.mask_BT, 0.0))


def test_a_sum_weighs_every_token_and_a_mean_every_answer() -> None:
    rows = golden_pairs()
    summed, averaged = (DPO(beta=0.1, reduction=reduction) for reduction in (Reduction.SUM, Reduction.MEAN))
    assert_near(each_alone(summed, rows), [0.620957, 0.825939])
    # h = 1/5 + 0.5/6 and -1/8 - 1.5/6, by hand.
    by_hand = [math.log1p(math.exp(-0.1 * h)) for h in (1 / 5 + 0.5 / 6, -1 / 8 - 1.5 / 6)]
    assert_near(each_alone(averaged, rows), by_hand)


def test_the_sft_term_is_the_mean_over_answers_of_their_mean_tokens() -> None:
    rows = golden_pairs()
    plain, more = (loss_of(DPO(sft_coef=coef), rows, rows.totals()) for coef in (0.0, 0.3))
    assert more.metrics["nll"].item() == pytest.approx((10 / 5 + 20 / 8) / 2)
    assert more.value.item() - plain.value.item() == pytest.approx(0.3 * 2.25)


def test_length_desensitization_scales_what_one_answer_has_beyond_the_other() -> None:
    # 2 against 4 tokens; every token of the rejected one has a log-ratio of -0.5, every one of the chosen 0.25.
    rows = rows_of(PAIR, (2, 4), (-1.0, -4.0), (-1.5, -2.0))
    for alpha in (0.0, 0.3, 1.0):
        h = 2 * 0.25 - (2 * -0.5 + alpha * 2 * -0.5)
        loss = loss_of(DPO(beta=0.2, length_desensitization=alpha), rows, rows.totals())
        assert loss.value.item() == pytest.approx(math.log1p(math.exp(-0.2 * h)), rel=1e-12)


def test_length_desensitization_counts_trained_tokens_and_not_positions() -> None:
    rows = rows_of(PAIR, (3, 3), (-3.0, -3.0), (-6.0, -9.0))
    mask_BT = torch.tensor([[True, False, True], [True, True, True]])
    gap = replace(rows, mask_BT=mask_BT)
    loss = loss_of(DPO(beta=1.0, length_desensitization=0.0), gap, gap.totals())
    # Two tokens of each: 2 x 1 of the chosen one, 2 x 2 of the rejected one.
    assert loss.value.item() == pytest.approx(math.log1p(math.exp(2.0)), rel=1e-12)


def test_robust_is_unbiased_where_labels_are_flipped() -> None:
    """With a share of labels the wrong way round its mean is the plain loss of the right ones."""
    share, plain, robust = 0.2, DPO(), DPO(loss_type=LossType.ROBUST, label_smoothing=0.2)
    rows = golden_pairs().lessons_at([0])
    flipped = replace(rows, parts=rows.parts[::-1])
    noisy = (1 - share) * each_alone(robust, rows) + share * each_alone(robust, flipped)
    torch.testing.assert_close(noisy, each_alone(plain, rows), rtol=1e-12, atol=0)


def test_a_hopeless_pair_still_has_a_gradient_and_a_finite_loss() -> None:
    rows = rows_of(PAIR, (1, 1), (-1e5, -1.0), (-1.0, -1e5))
    rows = replace(rows, logprobs_BT=rows.logprobs_BT.float(), reference_BT=rows.reference_BT.float())
    loss = loss_of(DPO(), rows, rows.totals())
    assert math.isfinite(loss.value.item())
    pull_BT = gradient(lambda own: loss_of(DPO(), own, own.totals()).value, rows)
    assert pull_BT.flatten().tolist() == pytest.approx([-0.1, 0.1])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"label_smoothing": 0.1, "loss_type": LossType.IPO}, "loss_type=ipo knows none"),
        ({"length_desensitization": 1.5}, "from 0 to 1"),
        ({"sft_coef": -1.0}, "0 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        DPO(**wrong)
