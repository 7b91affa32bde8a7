"""Where the log-probs at the start of a step come from, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from plain_training import UpdateLoss, alone, by_its_own_loss, distance, plain_policy, summed
from tiny import EACH, ODD, count, rollout_of, toy_groups, toy_rows
from trainers import WEIGHTS, Call, TrainerProcesses, forward_passes, grpo_calls, run, step_of, trainer_setup
from transformers import AutoModelForCausalLM

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.correction import Correction, Denominator, ImportanceWeight
from engine.algorithms.grpo import GRPO
from engine.algorithms.rloo import RLOO
from workers.config import OldLogprobs
from workers.records import Group, Rollout, Row, Span

TEMPERATURE = 0.7
slow = pytest.mark.slow
LESSONS = tuple((toy_rows(draws),) for draws in ((0, 1), (2, 3), (4, 5)))
"""Three batches of one update of eight rows; the first holds a response that is a tool's alone."""


@pytest.mark.parametrize(
    ("ranks", "stage"), [(1, 1), (2, 0), pytest.param(1, 3, marks=slow), pytest.param(2, 3, marks=slow)]
)
def test_recomputed_log_probs_start_at_ratio_one_and_teach_what_the_policys_own_teach(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, stage: int
) -> None:
    weights = {}
    for old_logprobs in (OldLogprobs.AUTO, OldLogprobs.RECOMPUTE):
        setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=ODD, old_logprobs=old_logprobs)
        answers = run(processes[ranks], setup, grpo_calls(LESSONS, ranks=ranks), WEIGHTS)
        weights[old_logprobs] = answers[0][3]
        deviations = [report.maxima.get("ratio_deviation") for answer in answers for report in answer[:3]]
        if old_logprobs is OldLogprobs.RECOMPUTE:
            assert max(deviations) <= 1e-6
        else:
            assert set(deviations) == {None}, "nothing was recomputed, so there is nothing to check"
    assert distance(*weights.values()) < 5e-6


@pytest.mark.parametrize(("ranks", "old_logprobs"), [(1, OldLogprobs.AUTO), (2, OldLogprobs.ROLLOUT)])
def test_the_mismatch_is_that_between_the_rollout_engine_and_the_plain_model_where_only_the_newest_version_wrote(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, old_logprobs: OldLogprobs
) -> None:
    # With the rollout engine's log-probs for the old ones, only the first of two updates can be compared.
    lesson = LESSONS[0] if old_logprobs is OldLogprobs.AUTO else (*LESSONS[0], *LESSONS[1])
    groups = tuple(stale(group) if group.draw == 1 else group for group in toy_groups())
    model, gaps = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), []
    for row in lesson[0]:
        rollout = rollout_of(row, groups)
        own = rollout.logprobs[rollout.action_mask()]
        if all(span.version == 0 for span in rollout.spans if span.sampled):
            gaps += (alone(model, row, TEMPERATURE).numpy() - own).tolist()
    assert 0 < len(gaps) < count(lesson[0], groups).tokens
    setup = trainer_setup(folder, tokens_per_micro_batch=ODD, old_logprobs=old_logprobs)
    calls = grpo_calls([lesson], ranks=ranks, groups=groups)
    reports = [answer[0] for answer in run(processes[ranks], setup, calls)]
    assert summed(reports, "logprob_gap_mean") == pytest.approx(np.mean(np.abs(gaps)), rel=1e-6)
    assert summed(reports, "logprob_gap_k3") == pytest.approx(np.mean(np.exp(gaps) - gaps - 1), rel=1e-5)
    # A rank whose responses all have older tokens compares none.
    assert max(report.maxima.get("logprob_gap_max", 0.0) for report in reports) == pytest.approx(
        np.abs(gaps).max(), rel=1e-6
    )


def stale(group: Group) -> Group:
    """Of each response, the tokens up to its second span are by older weights."""
    return replace(
        group,
        rollouts=tuple(
            replace(rollout, spans=(replace(first, version=-1), *others))
            for rollout in group.rollouts
            for first, *others in [rollout.spans]
        ),
    )


PASSES = [
    # Nothing is asked of the policy before its only update.
    (OldLogprobs.AUTO, 1, 1, 0.0, 0),
    (OldLogprobs.RECOMPUTE, 1, 1, 0.0, 1),
    (OldLogprobs.AUTO, 2, 1, 0.0, 1),
    (OldLogprobs.AUTO, 1, 2, 0.0, 1),
    # A charge for the divergence in the reward needs them before the update.
    (OldLogprobs.AUTO, 1, 1, 0.05, 1),
    (OldLogprobs.ROLLOUT, 2, 1, 0.0, 0),
    (OldLogprobs.ROLLOUT, 1, 1, 0.05, 0),
]


@pytest.mark.parametrize(("old_logprobs", "updates", "epochs", "kl_coef", "more"), PASSES)
def test_the_policy_is_asked_about_a_batch_once_more_only_where_that_is_needed(
    processes: dict[int, TrainerProcesses], folder: str,
    old_logprobs: OldLogprobs, updates: int, epochs: int, kl_coef: float, more: int,
) -> None:  # fmt: skip
    lesson = (LESSONS[0] + LESSONS[1])[:updates]
    rows = sum(len(rows) for rows in lesson)
    setup = trainer_setup(folder, tokens_per_micro_batch=EACH, old_logprobs=old_logprobs, epochs_per_step=epochs)
    step = step_of(lesson, RLOO(kl_coef=kl_coef))
    ((passes, report),) = processes[1](forward_passes, setup, step)
    assert passes == rows * (epochs + more)
    assert ("ratio_deviation" in report.maxima) == bool(more)


def test_the_rollout_engines_log_probs_for_the_old_ones_make_a_ratio_that_spans_the_mismatch(
    processes: dict[int, TrainerProcesses], folder: str
) -> None:
    correction = Correction(weight=ImportanceWeight.SEQUENCE_TIS, geometric_low=0.999, geometric_high=1.001)
    algorithm = GRPO(kl_coef=0.0, clip_low=1.0, clip_high=1e6, correction=correction)
    setup = trainer_setup(folder, tokens_per_micro_batch=ODD, old_logprobs=OldLogprobs.ROLLOUT)
    lessons = ((*LESSONS[0], *LESSONS[1]), LESSONS[2])
    calls: list[Call] = [("step", (step_of(lesson, algorithm, ranks=2),)) for lesson in lessons]
    answers = run(processes[2], setup, [calls] * 2, WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # Until the second update of the first lesson the policy is the folder's: here the first update alone.
    (first,) = run(processes[1], setup, [[("step", (step_of(LESSONS[0], algorithm),))]])
    ratios = [np.exp(alone(model, row, TEMPERATURE).numpy() - own_logprobs(row)) for row in LESSONS[0][0]]
    assert first[0].contributions["ratio_mean"] == pytest.approx(np.mean(np.concatenate(ratios)), rel=1e-5)
    for reports in ([first[0]], [answer[0] for answer in answers], [answer[1] for answer in answers]):
        assert summed(reports, "correction_weight") == pytest.approx(1.0, rel=1e-6)
        assert summed(reports, "correction_rejected") == summed(reports, "correction_clipped") == 0.0

    def bypassed(rows: Sequence[Row], old: Any) -> UpdateLoss:
        sampled = {row: torch.from_numpy(rollout_of(row, toy_groups()).logprobs) for row in rows}
        return by_its_own_loss(algorithm)(rows, sampled)

    expected = plain_policy(setup, lessons, bypassed, temperature=TEMPERATURE)
    assert distance(answers[0][2], expected.weights) < 2e-5


def own_logprobs(row: Row) -> np.ndarray:
    """The rollout engine's, of action tokens."""
    rollout = rollout_of(row, toy_groups())
    return rollout.logprobs[rollout.action_mask()]


@pytest.mark.parametrize("ranks", [1, 2])
def test_rejected_tokens_leave_the_step_where_denominators_count_the_kept_ones(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int
) -> None:
    """Pitfall 22: the same step as one in whose responses somebody else wrote the rejected tokens."""
    original = Correction(weight=ImportanceWeight.TOKEN_MASK, floor=0.3, cap=3.0)
    kept = replace(original, denominator=Denominator.KEPT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rewritten = tuple(without_far_tokens(group, model, low=0.3, high=3.0) for group in toy_groups())
    lesson = LESSONS[1]
    assert 0 < count(lesson[0], rewritten).tokens < count(lesson[0], toy_groups()).tokens
    setup = trainer_setup(folder, tokens_per_micro_batch=ODD)
    weights = {}
    for name, correction, groups in (
        ("kept", kept, toy_groups()),
        ("rewritten", original, rewritten),
        ("original", original, toy_groups()),
    ):
        algorithm = GRPO(kl_coef=0.1, aggregation=Aggregation.TOKEN_MEAN, correction=correction)
        step = step_of(lesson, algorithm, ranks=ranks, groups=groups)
        weights[name] = run(processes[ranks], setup, [[("step", (step,))]] * ranks, WEIGHTS)[0][1]
    assert distance(weights["kept"], weights["rewritten"]) < 1e-6
    assert distance(weights["kept"], weights["original"]) > 1e-4


def without_far_tokens(group: Group, model: torch.nn.Module, *, low: float, high: float) -> Group:
    """The tokens that the engine sampled with a far other probability than the model's are somebody else's."""

    def rewritten(rollout: Rollout) -> Rollout:
        own = rollout.action_mask()
        row = Row(draw=rollout.draw, sample=rollout.sample, reward=0.0, prompt_tokens=0)
        ratio = np.exp(alone(model, row, TEMPERATURE).numpy() - rollout.logprobs[own])
        own[own] = (ratio >= low) & (ratio <= high)
        spans = tuple(Span(start=t, end=t + 1, sampled=bool(own[t]), version=0) for t in range(len(own)))
        return replace(rollout, spans=spans)

    return replace(group, rollouts=tuple(map(rewritten, group.rollouts)))
