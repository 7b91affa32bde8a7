"""SFT: the token mean of the negative log-probability, whatever the split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from loss_rows import Rows

from engine.algorithms.sft import SFT


def test_the_loss_is_the_mean_negative_logprob_of_trained_tokens(clip_rows: Rows) -> None:
    loss = SFT().loss(clip_rows.policy(), clip_rows.batch(), clip_rows.totals(horizon=4))
    assert loss.value.item() == pytest.approx((0.9 + 1.4 + 0.9 + 0.1 + 2.6) / 5)
    assert loss.metrics["nll"].item() == loss.value.item()
    assert loss.metrics["entropy"].item() == pytest.approx((1 + 2 + 3 + 4 + 5) / 5)


def test_every_trained_token_pulls_equally_and_no_other_pulls_at_all(clip_rows: Rows) -> None:
    rows = clip_rows.spoiled(float("nan"))
    rows = replace(rows, new_BT=rows.new_BT.requires_grad_())
    value = SFT().loss(rows.policy(), rows.batch(), rows.totals(horizon=4)).value
    (gradient_BT,) = torch.autograd.grad(value, rows.new_BT)
    assert gradient_BT.flatten().tolist() == pytest.approx([-0.2] * 5 + [0.0])


def test_the_split_into_micro_batches_changes_nothing(random_rows: Rows) -> None:
    totals = random_rows.totals(horizon=4)
    whole = SFT().loss(random_rows.policy(), random_rows.batch(), totals)
    parts = [random_rows.at(rows) for rows in ([4, 1], [], [0, 5, 3, 2])]
    shares = [SFT().loss(part.policy(), part.batch(), totals) for part in parts]
    assert sum(share.value.item() for share in shares) == pytest.approx(whole.value.item(), rel=1e-12)
    for name, metric in whole.metrics.items():
        assert sum(share.metrics[name].item() for share in shares) == pytest.approx(metric.item(), rel=1e-12)
