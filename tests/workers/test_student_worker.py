"""Lessons are learned from as plain PyTorch learns from all of them at once, and measured without a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from plain_training import distance, same_bits, summed
from tiny import (
    ALL,
    EACH,
    ODD,
    deal_lessons,
    judged_of,
    pairs_of,
    said_by_reference,
    share_of,
    text_of,
    totals_of,
    toy_groups,
    toy_rows,
    write_reward_model,
)
from torch.nn.functional import logsigmoid
from toy_objectives import Better, Judged, Pair, Text
from trainers import WEIGHTS, Call, TrainerProcesses, learn, learn_judging, trainer_setup
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from workers.lessons import Example, Lesson, Objective
from workers.records import Totals
from workers.train_worker import TrainerSetup

slow = pytest.mark.slow
GROUPS = toy_groups()
PADDED, PACKED = False, True
STEPS = tuple(toy_rows(draws) for draws in ((1, 2), (3, 4)))
"""Two updates of eight sequences."""
QUICK = {
    (1, 0, ODD, PACKED), (1, 3, EACH, PADDED), (2, 1, ODD, PADDED), (2, 1, ODD, PACKED), (2, 3, EACH, PADDED),
    (2, 3, ODD, PACKED), (2, 2, ALL, PACKED),
}  # fmt: skip
EVERY_WAY = [
    pytest.param(*way, marks=() if way in QUICK else slow)
    for way in product((1, 2), (0, 1, 2, 3), (ALL, EACH, ODD), (PADDED, PACKED))
]


@pytest.fixture(scope="module")
def reward_model(folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_reward_model(tmp_path_factory.mktemp("reward-model"), folder)


def fit_calls(
    steps: Sequence[Sequence[Lesson]], objective: Objective, *, ranks: int, reference: bool = False, verb: str = "fit"
) -> list[list[Call]]:
    """What each rank is asked to do: one update a step."""
    shares = [deal_lessons(lessons, ranks=ranks, reference=reference) for lessons in steps]
    return [
        [(verb, (share[rank], totals_of(lessons), objective)) for share, lessons in zip(shares, steps, strict=True)]
        for rank in range(ranks)
    ]


def run(
    trainer: TrainerProcesses, setup: TrainerSetup, calls: list[list[Call]], *more: Call, worker: Any = learn
) -> list[list[Any]]:
    return trainer(worker, setup, by_rank=[[*of_rank, *more] for of_rank in calls])


# ----------------------------------------------------------------------------- by hand


def logprobs(model: torch.nn.Module, example: Example) -> torch.Tensor:
    """[T] what the plain model says of one sequence's completion."""
    tokens = torch.tensor(example.token_ids)
    logits_TV = model(input_ids=tokens[None]).logits[0, example.prompt_length - 1 : -1]
    return logits_TV.log_softmax(-1)[torch.arange(len(logits_TV)), tokens[example.prompt_length :]]


def ratio(model: torch.nn.Module, lesson: Lesson, number: int) -> torch.Tensor:
    """Summed log-ratio of a lesson's sequence to the made-up reference."""
    example = lesson.examples[number]
    reference = torch.from_numpy(said_by_reference([lesson])[number])
    return (logprobs(model, example) - reference)[torch.tensor(example.mask)].sum()


def of_pairs(model: torch.nn.Module, lessons: Sequence[Lesson], totals: Totals) -> torch.Tensor:
    apart = [ratio(model, lesson, 0) - ratio(model, lesson, 1) for lesson in lessons]
    return -torch.stack([logsigmoid(0.1 * one) for one in apart]).mean()


def of_judged(model: torch.nn.Module, lessons: Sequence[Lesson], totals: Totals) -> torch.Tensor:
    point = torch.stack([ratio(model, lesson, 1) for lesson in lessons]).mean().detach()
    return -torch.stack([torch.sigmoid(0.1 * (ratio(model, lesson, 0) - point)) for lesson in lessons]).mean()


def of_scores(model: torch.nn.Module, lessons: Sequence[Lesson], totals: Totals) -> torch.Tensor:
    def score(example: Example) -> torch.Tensor:
        return model(input_ids=torch.tensor([example.token_ids])).logits[0, 0]

    apart = [score(lesson.examples[0]) - score(lesson.examples[1]) - lesson.margin for lesson in lessons]
    return -torch.stack([logsigmoid(one) for one in apart]).mean()


def by_hand(
    model: torch.nn.Module,
    setup: TrainerSetup,
    steps: Sequence[Sequence[Lesson]],
    loss_of: Callable[[torch.nn.Module, Sequence[Lesson], Totals], torch.Tensor],
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights and losses of full-batch AdamW on the plain model."""
    train, losses = setup.train, []
    optimizer = torch.optim.AdamW(model.parameters(), train.learning_rate, train.betas, train.eps, train.weight_decay)
    for lessons in steps:
        optimizer.zero_grad()
        loss = loss_of(model, lessons, totals_of(lessons))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return {name: parameter.detach() for name, parameter in model.named_parameters()}, losses


# ----------------------------------------------------------------------------- learning


@pytest.mark.parametrize(("ranks", "stage", "budget", "packing"), EVERY_WAY)
def test_pairs_teach_what_they_teach_all_at_once(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, stage: int, budget: int, packing: bool
) -> None:
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=budget, packing=packing)
    steps = [pairs_of(rows, GROUPS) for rows in STEPS]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights, losses = by_hand(model, setup, steps, of_pairs)
    answers = run(processes[ranks], setup, fit_calls(steps, Pair(), ranks=ranks, reference=True), WEIGHTS)
    for number, loss in enumerate(losses):
        reports = [answer[number] for answer in answers]
        assert summed(reports, "loss") == pytest.approx(loss, rel=1e-6)
        assert sum(report.action_tokens for report in reports) == totals_of(steps[number]).tokens
    assert 0 < summed([answer[0] for answer in answers], "right") < 1
    assert distance(answers[0][-1], weights) < 5e-6


@pytest.mark.parametrize(
    ("ranks", "stage", "packing"),
    [(1, 1, PADDED), (2, 1, PACKED), (2, 3, PADDED), pytest.param(2, 3, PACKED, marks=slow)],
)
def test_what_an_answer_is_compared_with_is_a_mean_over_the_mismatched_answers_of_all_ranks(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, stage: int, packing: bool
) -> None:
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=ODD, packing=packing)
    steps = [judged_of(rows, GROUPS) for rows in STEPS]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        point = torch.stack([ratio(model, lesson, 1) for lesson in steps[0]]).mean().item()
    weights, losses = by_hand(model, setup, steps, of_judged)
    answers = run(processes[ranks], setup, fit_calls(steps, Judged(), ranks=ranks, reference=True), WEIGHTS)
    assert summed([answer[0] for answer in answers], "point") == pytest.approx(point, rel=1e-5)
    for number, loss in enumerate(losses):
        reports = [answer[number] for answer in answers]
        assert summed(reports, "loss") == pytest.approx(loss, rel=1e-6)
        # The mismatched are looked at and not learned from.
        assert sum(report.action_tokens for report in reports) == totals_of(steps[number]).tokens
    assert distance(answers[0][-1], weights) < 5e-6


@pytest.mark.parametrize(
    ("ranks", "stage", "packing"),
    [(1, 1, PACKED), (2, 1, PADDED), (2, 3, PACKED), pytest.param(2, 0, PACKED, marks=slow)],
)
def test_a_model_that_judges_learns_as_the_plain_classifier_does(
    processes: dict[int, TrainerProcesses], reward_model: str, ranks: int, stage: int, packing: bool
) -> None:
    setup = trainer_setup(reward_model, zero_stage=stage, tokens_per_micro_batch=ODD, packing=packing)
    steps = [pairs_of(rows, GROUPS) for rows in STEPS]
    model = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32)
    weights, losses = by_hand(model, setup, steps, of_scores)
    answers = run(processes[ranks], setup, fit_calls(steps, Better(), ranks=ranks), WEIGHTS, worker=learn_judging)
    for number, loss in enumerate(losses):
        assert summed([answer[number] for answer in answers], "loss") == pytest.approx(loss, rel=1e-6)
    assert distance(answers[0][-1], weights) < 5e-6


# ----------------------------------------------------------------------------- looking


@pytest.mark.parametrize(("ranks", "packing"), [(1, PADDED), (2, PACKED)])
def test_being_measured_says_what_learning_would_and_changes_nothing(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, packing: bool
) -> None:
    setup = trainer_setup(folder, tokens_per_micro_batch=ODD, packing=packing)
    steps = [pairs_of(rows, GROUPS) for rows in STEPS]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = of_pairs(model, steps[0], totals_of(steps[0])).item()
    fits = fit_calls(steps, Pair(), ranks=ranks, reference=True)
    measures = fit_calls(steps, Pair(), ranks=ranks, reference=True, verb="assess")
    both = [[measure[0], fit[0], measure[1], fit[1]] for measure, fit in zip(measures, fits, strict=True)]
    measured, unmeasured = run(processes[ranks], setup, both, WEIGHTS), run(processes[ranks], setup, fits, WEIGHTS)
    assert summed([answer[0] for answer in measured], "loss") == pytest.approx(expected, rel=1e-6)
    for before, after in ((0, 1), (2, 3)):
        for answer in measured:
            assert answer[before].contributions["loss"] == pytest.approx(answer[after].contributions["loss"], rel=1e-6)
            assert answer[before].action_tokens == answer[after].action_tokens
            assert "gradient_norm" not in answer[before].contributions
    assert same_bits(measured[0][-1], unmeasured[0][-1])
    assert [answer[3] for answer in measured] == [answer[1] for answer in unmeasured], "reports too"


@pytest.mark.parametrize(("ranks", "packing"), [(1, PACKED), (2, PADDED)])
def test_the_model_is_its_own_reference_until_it_learns(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, packing: bool
) -> None:
    setup = trainer_setup(folder, tokens_per_micro_batch=ODD, packing=packing)
    pairs = pairs_of(STEPS[0], GROUPS)
    shares = deal_lessons(pairs, ranks=ranks)
    calls: list[list[Call]] = [[("first_logprobs", (share.lessons,))] for share in shares]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for (said,), share in zip(run(processes[ranks], setup, calls), shares, strict=True):
        examples = [example for lesson in share.lessons for example in lesson.examples]
        for own, example in zip(said, examples, strict=True):
            assert own.dtype == np.float32 and own.base is None
            np.testing.assert_allclose(own, logprobs(model, example).detach().numpy(), atol=1e-6, rtol=1e-6)


def test_once_it_has_learned_it_is_nobodys_reference(processes: dict[int, TrainerProcesses], folder: str) -> None:
    texts = [text_of(row, GROUPS) for row in STEPS[0]]
    calls = fit_calls([texts], Text(), ranks=1)
    calls[0].append(("first_logprobs", (tuple(texts),)))
    with pytest.raises(RuntimeError, match="the policy has made 1 updates: it is not its own reference any more"):
        run(processes[1], trainer_setup(folder), calls)


def test_a_share_without_a_lesson_is_a_share(processes: dict[int, TrainerProcesses], folder: str) -> None:
    """A step may have fewer lessons than there are ranks."""
    pair = pairs_of(STEPS[0], GROUPS)[:1]
    setup = trainer_setup(folder, zero_stage=3)
    one = [("fit", (share_of(pair, reference=True), totals_of(pair), Pair()))]
    none = [("fit", (share_of([]), totals_of(pair), Pair()))]
    alone = run(processes[1], setup, [one], WEIGHTS)
    beside = run(
        processes[2], setup, [[("first_logprobs", ((),)), *none], [("first_logprobs", (pair,)), *one]], WEIGHTS
    )
    assert distance(alone[0][-1], beside[0][-1]) < 1e-6
    assert beside[0][0] == () and len(beside[1][0]) == 2
    assert beside[0][1].action_tokens == 0
