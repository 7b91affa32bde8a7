"""Continued pre-training and SFT: the token mean of the negative log-probability, whatever the split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from lesson_rows import LessonRows, figures, gradient, random_rows
from loss_rows import Rows

from engine.algorithms.base import LanguageObjective
from engine.algorithms.pt import PT
from engine.algorithms.sft import SFT
from workers.lessons import Part
from workers.records import Loss, TokenLogprobs, Totals

every_imitation = pytest.mark.parametrize("objective", [PT(), SFT()], ids=["pt", "sft"])


def lessons_of(rows: Rows) -> LessonRows:
    size = len(rows.mask_BT)
    return LessonRows(
        parts=(Part.TEXT,) * size,
        lesson_B=torch.arange(size),
        mask_BT=rows.mask_BT,
        logprobs_BT=rows.new_BT,
        reference_BT=rows.reference_BT,
        margin_B=torch.zeros(size),
    )


def loss_with(objective: LanguageObjective, rows: LessonRows, totals: Totals, entropy_BT: torch.Tensor) -> Loss:
    policy = TokenLogprobs(logprobs_BT=rows.logprobs_BT, entropy_BT=entropy_BT)
    return objective.loss(policy, rows.batch(), totals, 0.0)


@every_imitation
def test_the_loss_is_the_mean_negative_logprob_of_trained_tokens(objective: PT, clip_rows: Rows) -> None:
    loss = loss_with(objective, lessons_of(clip_rows), clip_rows.totals(), clip_rows.entropy_BT)
    assert loss.value.item() == pytest.approx((0.9 + 1.4 + 0.9 + 0.1 + 2.6) / 5)
    assert loss.metrics["nll"].item() == loss.value.item()
    assert loss.metrics["entropy"].item() == pytest.approx((1 + 2 + 3 + 4 + 5) / 5)


@every_imitation
def test_every_trained_token_pulls_equally_and_no_other_pulls_at_all(objective: PT, clip_rows: Rows) -> None:
    rows, entropy_BT = lessons_of(clip_rows.spoiled(float("nan"))), clip_rows.spoiled(float("nan")).entropy_BT
    pull_BT = gradient(lambda own: loss_with(objective, own, rows.totals(), entropy_BT).value, rows)
    assert pull_BT.flatten().tolist() == pytest.approx([-0.2] * 5 + [0.0])


@every_imitation
@pytest.mark.parametrize("split", [([4, 1], [], [0, 5, 3, 2]), ([0], [1], [2], [3], [4], [5])])
def test_the_split_into_micro_batches_changes_nothing(objective: PT, split: Sequence[Sequence[int]]) -> None:
    rows = random_rows((Part.TEXT,) * 6)
    entropy_BT = rows.reference_BT.abs()
    whole = figures(loss_with(objective, rows, rows.totals(), entropy_BT))
    shares = [figures(loss_with(objective, rows.at(part), rows.totals(), entropy_BT[part])) for part in split]
    assert {name: sum(share[name] for share in shares) for name in whole} == pytest.approx(whole, rel=1e-12)


@every_imitation
def test_nobody_is_asked_for_a_reference(objective: PT) -> None:
    rows = random_rows((Part.TEXT,) * 2)
    rows = replace(rows, reference_BT=rows.reference_BT * float("nan"))
    assert not objective.needs.reference
    assert loss_with(objective, rows, rows.totals(), rows.mask_BT.double()).value.isfinite()
