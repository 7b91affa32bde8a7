"""The policy's trainer is plain PyTorch's full-batch AdamW, whatever DeepSpeed, ranks and micro-batches do between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite, nan
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from plain_training import (
    Plain,
    alone,
    distance,
    grpo_by_hand,
    plain_policy,
    same_bits,
    sft_by_hand,
    summed,
)
from tiny import ALL, EACH, ODD, count, deal, share_of, text_of, toy_groups, toy_rows
from trainers import (
    WEIGHTS,
    Call,
    TrainerProcesses,
    UpdateRows,
    grpo_calls,
    learn,
    learn_after_another,
    reference_and_trainer,
    run,
    step_of,
    trainer_setup,
)
from transformers import AutoModelForCausalLM

from engine.algorithms.grpo import GRPO
from engine.algorithms.sft import SFT
from workers.config import OldLogprobs, Precision, Schedule

TEMPERATURE = 0.7
slow = pytest.mark.slow
ZERO_STAGES = (0, 1, 2, 3)
LESSONS = tuple((toy_rows(draws),) for draws in ((0, 1), (2, 3), (4, 5)))
"""Three batches of one update of eight rows; the first holds a response that is a tool's alone."""


# ----------------------------------------------------------------------------- asking the trainers


def sft_calls(lessons: Sequence[UpdateRows], *, ranks: int = 1) -> list[list[Call]]:
    groups = toy_groups()
    calls: list[list[Call]] = [[] for _ in range(ranks)]
    for (rows,) in lessons:
        for rank, update in enumerate(deal(rows, groups, ranks=ranks)):
            share = share_of([text_of(row, groups) for row in update.rows])
            calls[rank].append(("fit", (share, update.totals, SFT())))
    return calls


# ----------------------------------------------------------------------------- learning


TASKS = {
    "grpo-kl": (lambda ranks: grpo_calls(LESSONS, ranks=ranks), grpo_by_hand(0.04), TEMPERATURE),
    "grpo": (lambda ranks: grpo_calls(LESSONS, ranks=ranks, kl_coef=0.0), grpo_by_hand(0.0), TEMPERATURE),
    "sft": (lambda ranks: sft_calls(LESSONS, ranks=ranks), sft_by_hand, 1.0),
}
QUICK = {
    (1, 0, "grpo-kl", ALL), (1, 1, "grpo-kl", EACH), (1, 2, "grpo-kl", EACH), (1, 3, "grpo-kl", ODD),
    (2, 0, "grpo-kl", ODD), (2, 1, "grpo-kl", EACH), (2, 2, "grpo-kl", ODD), (2, 3, "grpo-kl", EACH),
    (1, 1, "grpo", ODD), (2, 0, "sft", ODD), (1, 1, "sft", ODD), (1, 3, "sft", ALL),
}  # fmt: skip
EVERY = [
    pytest.param(*case, marks=() if case in QUICK else slow)
    for case in [(r, s, t, b) for r in (1, 2) for s in ZERO_STAGES for t in TASKS for b in (ALL, EACH, ODD)]
]


@pytest.fixture(scope="module")
def plain_of(folder: str) -> Callable[[str], Plain]:
    done: dict[str, Plain] = {}

    def plain_of(task: str) -> Plain:
        if task not in done:
            _, teacher, temperature = TASKS[task]
            done[task] = plain_policy(trainer_setup(folder), LESSONS, teacher, temperature=temperature)
        return done[task]

    return plain_of


@pytest.mark.parametrize(("ranks", "stage", "task", "budget"), EVERY)
def test_three_updates_are_those_of_plain_full_batch_adamw(
    processes: dict[int, TrainerProcesses], folder: str, plain_of: Callable[[str], Plain],
    ranks: int, stage: int, task: str, budget: int,
) -> None:  # fmt: skip
    expected, groups = plain_of(task), toy_groups()
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=budget)
    totals = count(LESSONS[0][0], groups)
    measure: Call = ("assess", (share_of([text_of(row, groups) for row in LESSONS[0][0]]), totals, SFT()))
    answers = run(processes[ranks], setup, TASKS[task][0](ranks), WEIGHTS, measure)
    weights = answers[0][3]
    # Measured: 6e-7. Three updates move a weight by up to 3e-3.
    assert distance(weights, expected.weights) < 5e-6
    for number in range(3):
        reports = [answer[number] for answer in answers]
        norm = expected.norms[number]
        assert norm > 2 * setup.train.max_grad_norm, "or clipping would go untested"
        assert summed(reports, "loss") == pytest.approx(expected.losses[number], rel=1e-6, abs=1e-6)
        assert summed(reports, "gradient_norm") == pytest.approx(norm, rel=3e-6)
        assert sum(report.action_tokens for report in reports) == count(LESSONS[number][0], groups).tokens
        assert all(report.skipped_updates == 0 for report in reports)
    assessed = [answer[4] for answer in answers]
    assert all(report == assessed[0] for report in assessed), "all ranks hold the same weights"
    nll = plain_nll(folder, expected) / totals.tokens
    assert assessed[0].contributions["nll"] == pytest.approx(nll, rel=1e-6)
    assert assessed[0].action_tokens == totals.tokens


def plain_nll(folder: str, trained: Plain) -> float:
    """Of the rows of the first lesson under the trained weights, summed over trained tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(trained.weights)
    return -sum(float(alone(model, row, 1.0).sum()) for row in LESSONS[0][0])


def test_the_rank_with_fewer_rows_has_fewer_micro_batches_of_its_own() -> None:
    """The uneven deal is what makes the two-rank cases above pass blank rows."""
    first, second = (len(update.rows) for update in deal(LESSONS[0][0], toy_groups(), ranks=2))
    assert (first, second) == (3, 5)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (1, 1), (2, 1)])
def test_each_update_of_a_step_has_its_own_totals_and_the_steps_first_log_probs(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, stage: int
) -> None:
    # Updates of different sizes, and steps long enough for the second to be clipped.
    lessons = ((toy_rows((0, 1)), toy_rows((2, 3, 4, 5))), (toy_rows((1, 2, 3)), toy_rows((4, 5))))
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=ODD, learning_rate=3e-3)
    expected = plain_policy(setup, lessons, grpo_by_hand(0.04), temperature=TEMPERATURE)
    answers = run(processes[ranks], setup, grpo_calls(lessons, ranks=ranks), WEIGHTS)
    for number in range(2):
        reports = [answer[number] for answer in answers]
        losses, norms = (values[2 * number : 2 * number + 2] for values in (expected.losses, expected.norms))
        assert summed(reports, "loss") == pytest.approx(sum(losses) / 2, rel=1e-6, abs=1e-6)
        assert summed(reports, "gradient_norm") == pytest.approx(sum(norms) / 2, rel=3e-6)
        assert summed(reports, "clip_low") + summed(reports, "clip_high") > 0
        assert max(report.maxima["ratio_deviation"] for report in reports) <= 1e-6
        tokens = sum(count(rows, toy_groups()).tokens for rows in lessons[number])
        assert sum(report.action_tokens for report in reports) == tokens
    assert distance(answers[0][2], expected.weights) < 1e-5


# ----------------------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("old_logprobs", list(OldLogprobs))
def test_nan_where_the_mask_is_off_changes_no_bit(
    processes: dict[int, TrainerProcesses], folder: str, old_logprobs: OldLogprobs
) -> None:
    setup = trainer_setup(folder, tokens_per_micro_batch=ODD, old_logprobs=old_logprobs)
    clean = run(processes[1], setup, grpo_calls(LESSONS), WEIGHTS)[0]
    poisoned_calls = grpo_calls(LESSONS, groups=toy_groups(poison=True), filler=nan)
    poisoned = run(processes[1], setup, poisoned_calls, WEIGHTS)[0]
    assert same_bits(clean[3], poisoned[3])
    assert clean[:3] == poisoned[:3], "reports too"


@pytest.mark.parametrize("advantage", [1.0, inf, nan])
def test_a_response_without_a_token_of_the_policys_own_changes_no_bit(
    processes: dict[int, TrainerProcesses], folder: str, advantage: float
) -> None:
    rows = toy_rows((0, 1))
    with_it, without = (rows,), (tuple(row for row in rows if (row.draw, row.sample) != (0, 3)),)
    assert count(with_it[0], toy_groups()) == count(without[0], toy_groups())
    worth = {(row.draw, row.sample): row.reward for row in rows} | {(0, 3): advantage}
    setup = trainer_setup(folder, tokens_per_micro_batch=EACH)
    one, other = (
        run(processes[1], setup, grpo_calls([lesson], worth=worth), WEIGHTS)[0][1] for lesson in (with_it, without)
    )
    assert same_bits(one, other)


def test_a_step_of_such_responses_alone_trains_nothing_and_is_finite(
    processes: dict[int, TrainerProcesses], folder: str
) -> None:
    rows = tuple(row for row in toy_rows((0,)) if row.sample == 3)
    setup = trainer_setup(folder, weight_decay=0.0)
    calls = grpo_calls([(rows,)])
    before, report, after = run(processes[1], setup, [[WEIGHTS, *calls[0]]], WEIGHTS)[0]
    assert (report.action_tokens, report.skipped_updates, report.maxima) == (0, 0, {})
    assert all(isfinite(value) for value in report.contributions.values())
    assert report.contributions["loss"] == report.contributions["gradient_norm"] == 0.0
    assert same_bits(before, after)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_order_of_rows_does_not_matter(processes: dict[int, TrainerProcesses], folder: str, ranks: int) -> None:
    setup = trainer_setup(folder, tokens_per_micro_batch=ODD)
    backwards = tuple((rows[::-1],) for (rows,) in LESSONS)
    one = run(processes[ranks], setup, grpo_calls(LESSONS, ranks=ranks), WEIGHTS)[0][3]
    other = run(processes[ranks], setup, grpo_calls(backwards, ranks=ranks), WEIGHTS)[0][3]
    assert distance(one, other) < 5e-6


# ----------------------------------------------------------------------------- gradients that are not finite


@pytest.mark.parametrize(
    ("ranks", "stage", "bad"),
    [(1, 0, inf), (1, 1, inf), (1, 1, nan), (1, 2, inf), (1, 3, inf), (2, 0, nan), (2, 1, inf)],
)
def test_a_gradient_that_is_not_finite_skips_the_step_everywhere_and_leaves_no_trace(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, stage: int, bad: float
) -> None:
    # The last row is the last rank's.
    rows = LESSONS[0][0]
    [broken, *_] = grpo_calls(LESSONS[:1], ranks=ranks, worth={(rows[-1].draw, rows[-1].sample): bad})
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=ODD)
    calls = grpo_calls(LESSONS, ranks=ranks)
    calls = [[first, WEIGHTS, *broken, WEIGHTS, *good] for first, *good in calls]
    answers = run(processes[ranks], setup, calls, WEIGHTS)
    first = answers[0]
    assert same_bits(first[1], first[3]), "the broken update moved nothing"
    assert [[answer[n].skipped_updates for n in (0, 2, 4, 5)] for answer in answers] == [[0, 1, 0, 0]] * ranks
    # Adam's moments and its count of steps are as if the broken update had never been.
    expected = plain_policy(setup, LESSONS, grpo_by_hand(0.04), temperature=TEMPERATURE)
    assert distance(first[6], expected.weights) < 5e-6
    assert first[5].contributions["gradient_norm"] == pytest.approx(expected.norms[2], rel=3e-6)


# ----------------------------------------------------------------------------- the learning rate, checkpoints


def test_the_schedule_reaches_the_optimizer(processes: dict[int, TrainerProcesses], folder: str) -> None:
    setup = trainer_setup(folder, warmup_updates=2, schedule=Schedule.LINEAR, total_updates=4)
    lessons = (LESSONS[0], LESSONS[1])
    *reports, weights = run(processes[1], setup, grpo_calls(lessons), WEIGHTS)[0]
    assert [report.contributions["learning_rate"] for report in reports] == [5e-4, 1e-3]
    start = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    # Adam's first step is at most the learning rate a weight, the decay aside; two make 1.5e-3 and not 2e-3.
    moved = max((weights[name] - start[name]).abs().max().item() for name in weights)
    assert 1.3e-3 < moved < 1.7e-3


RESUMED = [
    *((1, 0), (1, 1), (2, 1)),
    *(pytest.param(ranks, stage, marks=slow) for ranks, stage in ((1, 2), (1, 3), (2, 0), (2, 2), (2, 3))),
]


@pytest.mark.parametrize(("ranks", "stage"), RESUMED)
def test_a_resumed_trainer_goes_on_bit_for_bit(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path, ranks: int, stage: int
) -> None:
    setup = trainer_setup(
        folder, zero_stage=stage, tokens_per_micro_batch=ODD, total_updates=4,
        warmup_updates=2, schedule=Schedule.LINEAR, final_learning_rate_share=0.1,
    )  # fmt: skip
    calls = grpo_calls((*LESSONS, LESSONS[0]), ranks=ranks)
    straight = run(processes[ranks], setup, calls, WEIGHTS)
    run(processes[ranks], setup, [of_rank[:2] for of_rank in calls], ("save", (tmp_path,)))
    resumed = run(processes[ranks], setup, [[("load", (tmp_path,)), *of_rank[2:]] for of_rank in calls], WEIGHTS)
    assert same_bits(resumed[0][3], straight[0][4])
    assert [answer[1:3] for answer in resumed] == [answer[2:4] for answer in straight], "reports too"
    # Warm-up took two updates; then from 1e-3 halfway to 1e-4.
    rates = [report.contributions["learning_rate"] for report in resumed[0][1:3]]
    assert rates == pytest.approx([1e-3, 5.5e-4])


@pytest.mark.parametrize("stage", [0, 1, pytest.param(2, marks=slow), pytest.param(3, marks=slow)])
def test_a_trainer_that_goes_on_under_another_weight_decay_learns_by_it(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path, stage: int
) -> None:
    """The checkpoint holds the old one. By its definition (1711.05101, Alg. 2) all that changes is the decay."""
    calls = grpo_calls((LESSONS[0], LESSONS[1]))[0]
    run(processes[1], trainer_setup(folder, zero_stage=stage, weight_decay=0.0), [calls[:1]], ("save", (tmp_path,)))
    before, without, by_it = {}, {}, {}
    for decay, after in ((0.0, without), (10.0, by_it)):
        setup = trainer_setup(folder, zero_stage=stage, weight_decay=decay)
        [answer] = run(processes[1], setup, [[("load", (tmp_path,)), WEIGHTS, calls[1]]], WEIGHTS)
        before, rate = answer[1], answer[2].contributions["learning_rate"]
        after.update(answer[3])
    for name, weight in before.items():
        assert torch.allclose(without[name] - by_it[name], 10.0 * rate * weight, atol=1e-6)
    assert max(weight.abs().max().item() for weight in before.values()) * 10.0 * rate > 1e-4


def test_a_sharded_trainer_that_only_some_ranks_still_hold_has_no_part_in_the_next(
    processes: dict[int, TrainerProcesses], folder: str
) -> None:
    sharded, whole = (trainer_setup(folder, zero_stage=stage) for stage in (3, 1))
    answers = processes[2](learn_after_another, sharded, whole, by_rank=[[WEIGHTS]] * 2)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert distance(answers[0][0], {name: plain[name] for name in answers[0][0]}) == 0.0


def test_a_folder_without_a_checkpoint_is_an_error(folder: str, tmp_path: Path) -> None:
    trainer = TrainerProcesses(1, tmp_path)
    try:
        with pytest.raises(RuntimeError, match="no DeepSpeed checkpoint of the policy in"):
            trainer(learn, trainer_setup(folder), [("load", (tmp_path / "nowhere",))])
    finally:
        trainer.close()


# ----------------------------------------------------------------------------- bfloat16, the reference, export


@pytest.mark.parametrize(
    ("stage", "packing", "checkpointing"), [(1, False, False), (2, False, False), (1, True, True), (3, True, True)]
)
def test_bfloat16_learns_a_data_set_and_publishes_bfloat16(
    processes: dict[int, TrainerProcesses], folder: str, stage: int, packing: bool, checkpointing: bool
) -> None:
    setup = trainer_setup(
        folder, precision=Precision.BFLOAT16, zero_stage=stage, learning_rate=1e-2, max_grad_norm=1.0,
        tokens_per_micro_batch=ODD, packing=packing, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    *reports, weights = run(processes[1], setup, sft_calls([LESSONS[0]] * 10), WEIGHTS)[0]
    losses = [report.contributions["loss"] for report in reports]
    assert losses[-1] < 0.5 * losses[0]
    assert all(report.skipped_updates == 0 for report in reports)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (3, 2)])
def test_layers_that_are_computed_again_for_want_of_memory_learn_the_same_bits(
    processes: dict[int, TrainerProcesses], folder: str, stage: int, ranks: int
) -> None:
    learned = []
    for budget_gib in (0.0, 1e-9):
        setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=ODD, activations_gib=budget_gib)
        *_, weights = run(processes[ranks], setup, sft_calls(LESSONS, ranks=ranks), WEIGHTS)[0]
        learned.append(weights)
    assert learned[0].keys() == learned[1].keys()
    assert all(torch.equal(tensor, learned[1][name]) for name, tensor in learned[0].items())


@pytest.mark.parametrize(("budget", "packing"), [(ALL, False), (ODD, False), (EACH, False), (ODD, True)])
def test_the_reference_and_the_policy_start_at_a_divergence_of_exactly_zero(
    processes: dict[int, TrainerProcesses], folder: str, budget: int, packing: bool
) -> None:
    setup = trainer_setup(folder, tokens_per_micro_batch=budget, packing=packing)
    (said,) = processes[1](reference_and_trainer, setup, step_of(LESSONS[0], GRPO(kl_coef=0.04)))
    assert np.array_equal(said["reference"], said["policy"])
    assert said["report"].contributions["kl"] == 0.0


@pytest.mark.parametrize(
    ("tied", "ranks", "stage"), [(False, 1, 1), (True, 1, 1), (True, 1, 3), pytest.param(False, 2, 3, marks=slow)]
)
def test_an_exported_folder_is_the_trained_policy_bit_for_bit(
    processes: dict[int, TrainerProcesses], tmp_path: Path, tied: bool, ranks: int, stage: int
) -> None:
    start = tiny.write_policy(tmp_path / "start", tied=tied)
    setup = trainer_setup(start, zero_stage=stage)
    calls = grpo_calls(LESSONS[:1], ranks=ranks)
    answers = run(processes[ranks], setup, calls, WEIGHTS, ("export", (tmp_path / "end",)))
    published = answers[0][1]
    assert ("lm_head.weight" in published) is not tied
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "end", dtype="auto").eval()
    assert reloaded.config.tie_word_embeddings is tied
    assert reloaded.config.use_cache
    assert same_bits(dict(reloaded.named_parameters()), published)
    by_hand = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).eval()
    untrained = by_hand(torch.arange(5, 25)[None]).logits
    with torch.no_grad():
        for name, parameter in by_hand.named_parameters():
            parameter.copy_(published[name])
    logits = reloaded(torch.arange(5, 25)[None]).logits
    assert torch.equal(logits, by_hand(torch.arange(5, 25)[None]).logits)
    assert not torch.equal(logits, untrained)


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_a_tied_policy_learns_as_plain_pytorch_does(
    processes: dict[int, TrainerProcesses], tmp_path: Path, stage: int
) -> None:
    setup = trainer_setup(tiny.write_policy(tmp_path, tied=True), zero_stage=stage, tokens_per_micro_batch=ODD)
    expected = plain_policy(setup, LESSONS, grpo_by_hand(0.04), temperature=TEMPERATURE)
    weights = run(processes[1], setup, grpo_calls(LESSONS), WEIGHTS)[0][3]
    assert distance(weights, expected.weights) < 5e-6
