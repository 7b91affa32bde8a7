"""A number that is not finite, wherever it is and whichever rank has it, costs its update and leaves no trace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from math import inf, isfinite, nan
from typing import Any

import pytest
import tiny
import torch
from plain_training import distance, summed
from tiny import ODD, toy_rows
from torch import Tensor
from trainers import Call, TrainerProcesses, critic_step, policy_step, step_of, trainer_setup

from engine.algorithms.grpo import GRPO
from engine.algorithms.ppo import PPO
from engine.metrics import of_update
from workers.config import Precision, Schedule
from workers.records import AlgorithmState, Batch, Credit, Experience, Loss, ModelOutputs, TokenLogprobs, Totals
from workers.tally import UpdateReport
from workers.train_worker import RankInfo, TrainerSetup, TrainWorker

slow = pytest.mark.slow
LESSONS = tuple((toy_rows(draws),) for draws in ((0, 1), (2, 3), (4, 5)))
"""Three batches of one update of eight rows."""


# ----------------------------------------------------------------------------- what is spoiled


def spoiled(tensor_BT: Tensor, mask_BT: Tensor, by: float) -> Tensor:
    """The first action token's number is `by` off, and its gradient is what it was."""
    off_BT = torch.zeros_like(tensor_BT)
    if mask_BT.any():
        off_BT[tuple(mask_BT.nonzero()[0])] = by
    return tensor_BT + off_BT


@dataclass(frozen=True, kw_only=True)
class SpoiledGRPO(GRPO):
    """Whose loss reads one bad number in every micro-batch."""

    place: str
    by: float

    def divergence(self, batch: Batch, outputs: ModelOutputs) -> Tensor:
        by = self.by if self.place == "divergence" else 0.0
        return spoiled(super().divergence(batch, outputs), batch.mask_BT, by)

    def policy_loss(self, policy: TokenLogprobs, experience: Experience, totals: Totals, state: AlgorithmState) -> Loss:
        batch, tensors, credit = experience.batch, dict(experience.outputs.tensors), experience.credit
        mask_BT = batch.mask_BT
        match self.place:
            case "own log-prob":
                policy = replace(policy, logprobs_BT=spoiled(policy.logprobs_BT, mask_BT, self.by))
            case "rollout log-prob":
                batch = replace(batch, rollout_logprobs_BT=spoiled(batch.rollout_logprobs_BT, mask_BT, self.by))
            case "old log-prob" | "reference log-prob":
                name = f"{self.place.split()[0]}_logprobs_BT"
                tensors[name] = spoiled(tensors[name], mask_BT, self.by)
            case "advantage":
                credit = replace(credit, advantages_BT=spoiled(credit.advantages_BT, mask_BT, self.by))
        experience = replace(experience, batch=batch, outputs=ModelOutputs(tensors=tensors), credit=credit)
        loss = super().policy_loss(policy, experience, totals, state)
        return replace(loss, value=loss.value + self.by) if self.place == "loss" else loss


@dataclass(frozen=True, kw_only=True)
class SpoiledPPO(PPO):
    """Whose critic, or what it learns from, has one bad number."""

    place: str
    by: float

    def token_credit(self, batch: Batch, outputs: ModelOutputs, advantage_B: Tensor, state: AlgorithmState) -> Credit:
        tensors = dict(outputs.tensors)
        if self.place == "expected value":
            tensors["values_BT"] = spoiled(tensors["values_BT"], batch.mask_BT, self.by)
        return super().token_credit(batch, ModelOutputs(tensors=tensors), advantage_B, state)

    def value_loss(self, values_BT: Tensor, experience: Experience, totals: Totals) -> Loss:
        mask_BT = experience.batch.mask_BT
        match self.place:
            case "value":
                values_BT = spoiled(values_BT, mask_BT, self.by)
            case "old value":
                old_BT = spoiled(experience.outputs.values_BT, mask_BT, self.by)
                experience = replace(experience, outputs=ModelOutputs(tensors={"values_BT": old_BT}))
            case "return":
                returns_BT = spoiled(experience.credit.returns_BT, mask_BT, self.by)
                experience = replace(experience, credit=replace(experience.credit, returns_BT=returns_BT))
        return super().value_loss(values_BT, experience, totals)


IN_PASSING = ("expected value", "advantage", "divergence", "embedding", "gradient")
"""Places whose bad number reaches the gradient by itself."""
AS_A_LOSS = ("own log-prob", "old log-prob", "reference log-prob", "loss")
"""Places whose bad number reaches the loss and no gradient: it is clamped on the way, or no weight decides it."""
POLICY = (
    *((place, by) for place in IN_PASSING for by in (nan, inf, -inf)),
    *((place, nan) for place in AS_A_LOSS),
    ("loss", inf),
)
CRITIC = tuple((place, by) for place in ("value", "old value", "return", "embedding", "gradient") for by in (nan, inf))


def policy_algorithm(place: str, by: float) -> GRPO | PPO:
    """Of whoever is not the culprit as well, so that all ranks ask each other the same."""
    return SpoiledPPO(place=place, by=by) if place == "expected value" else SpoiledGRPO(place=place, by=by)


# ----------------------------------------------------------------------------- in the trainer processes


def learn_spoiled(rank: RankInfo, setup: TrainerSetup, calls: Sequence[Call]) -> list[Any]:
    """A fresh PolicyWorker: a report for each step, and digests for each ("state", ())."""
    from workers.policy_worker import PolicyWorker

    return _done(PolicyWorker(setup, rank), policy_step, calls)


def learn_spoiled_values(rank: RankInfo, setup: TrainerSetup, calls: Sequence[Call]) -> list[Any]:
    """The same with a CriticWorker."""
    from workers.critic_worker import CriticWorker

    return _done(CriticWorker(setup, replace(rank, role="critic")), critic_step, calls)


def _done(worker: TrainWorker, step: Callable[..., UpdateReport], calls: Sequence[Call]) -> list[Any]:
    def with_embedding(own: Any, by: float) -> UpdateReport:
        def spoil(module: Any, inputs: Any, hidden: Tensor) -> Tensor:
            hidden = hidden.clone()
            hidden[0, 0, 0] = by
            return hidden

        handle = worker._model.get_input_embeddings().register_forward_hook(spoil)
        try:
            return step(worker, own)
        finally:
            handle.remove()

    def with_gradient(own: Any, by: float) -> UpdateReport:
        def spoil(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient.view(-1)[0] = by
            return gradient

        handle = worker._model.base_model.norm.weight.register_hook(spoil)
        try:
            return step(worker, own)
        finally:
            handle.remove()

    def with_spike(own: Any, factor: float) -> UpdateReport:
        handles = [weight.register_hook(lambda gradient: gradient * factor) for weight in worker._model.parameters()]
        try:
            return step(worker, own)
        finally:
            for handle in handles:
                handle.remove()

    verbs = {
        "step": lambda own: step(worker, own),
        "embedding": with_embedding,
        "gradient": with_gradient,
        "spike": with_spike,
        "state": lambda: _digests(worker),
        "weights": lambda: {name: tensor.detach().clone() for name, tensor in worker._whole_weights()},
    }
    return [verbs[verb](*arguments) for verb, arguments in calls]


def _digests(worker: TrainWorker) -> dict[str, str]:
    """Of every number that decides what is learned next: weights, the optimizer's own float32 copies of them, its
    moments, and how often it has stepped."""
    found = {name: _digest(weight) for name, weight in worker._whole_weights()}
    optimizer = worker._engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    for place, (own, moments) in enumerate(inner.state.items()):
        numbers = {"copy": own, **moments}
        found |= {f"{name} {place}": _digest(number) for name, number in numbers.items()}
    return found


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


# ----------------------------------------------------------------------------- one bad number

STATE: Call = ("state", ())
WEIGHTS: Call = ("weights", ())
WAYS = [
    (1, 0, Precision.FLOAT32),
    (2, 0, Precision.FLOAT32),
    (1, 2, Precision.FLOAT32),
    (2, 2, Precision.BFLOAT16),
    pytest.param(2, 2, Precision.FLOAT32, marks=slow),
    pytest.param(1, 2, Precision.BFLOAT16, marks=slow),
    pytest.param(2, 1, Precision.BFLOAT16, marks=slow),
    pytest.param(1, 3, Precision.FLOAT32, marks=slow),
    pytest.param(2, 3, Precision.BFLOAT16, marks=slow),
]


def asked(
    places: Sequence[tuple[str, float]], *, ranks: int, algorithm: Callable[[str, float], GRPO | PPO]
) -> list[list[Call]]:
    """Of each rank: a step, then one for each place that one rank alone spoils, then two more."""
    first, *rest = (("step", (step_of(lesson, algorithm("", 0.0), ranks=ranks),)) for lesson in LESSONS)
    calls: list[list[Call]] = [[first, STATE] for _ in range(ranks)]
    for (place, by), culprit in zip(places, cycle(range(ranks)), strict=False):
        for rank in range(ranks):
            own = step_of(LESSONS[1], algorithm(place, by if rank == culprit else 0.0), ranks=ranks)
            in_model = place in ("embedding", "gradient") and rank == culprit
            calls[rank] += [(place, (own, by)) if in_model else ("step", (own,)), STATE]
    return [[*of_rank, *rest, STATE] for of_rank in calls]


def check_no_trace(
    answers: Sequence[list[Any]], clean: Sequence[list[Any]], places: Sequence[tuple[str, float]]
) -> None:
    """`clean`: of the same steps without the spoiled ones."""
    for own, undisturbed in zip(answers, clean, strict=True):
        assert own[:2] == undisturbed[:2]
        assert {"copy 0", "exp_avg 0", "exp_avg_sq 0", "step 0"} < own[1].keys()
        assert dict(zip(places, own[3:-3:2], strict=True)) == dict.fromkeys(places, own[1])
        assert own[-3:] == undisturbed[-3:], "what is learned afterwards, and what is told of it"
    reports = list(zip(*(own[2:-3:2] for own in answers), strict=True))
    assert {place: of_update(told)["skipped_updates"] for place, told in zip(places, reports, strict=True)} == (
        dict.fromkeys(places, 1.0)
    )
    assert all(report.skipped_updates == 1 for told in reports for report in told), "on all ranks"
    assert not any(isfinite(summed(told, "gradient_norm")) for told in reports)


@pytest.mark.parametrize(("ranks", "stage", "precision"), WAYS)
def test_a_bad_number_of_one_rank_skips_the_update_on_all_and_the_next_ones_are_as_if_it_had_not_been(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, stage: int, precision: Precision
) -> None:
    setup = trainer_setup(folder, zero_stage=stage, precision=precision, tokens_per_micro_batch=ODD)
    answers, clean = (
        processes[ranks](learn_spoiled, setup, by_rank=asked(places, ranks=ranks, algorithm=policy_algorithm))
        for places in (POLICY, ())
    )
    check_no_trace(answers, clean, POLICY)


@pytest.mark.parametrize(
    ("ranks", "stage", "precision"),
    [(1, 0, Precision.FLOAT32), (2, 2, Precision.BFLOAT16), pytest.param(2, 3, Precision.FLOAT32, marks=slow)],
)
def test_the_same_of_the_critic(
    processes: dict[int, TrainerProcesses],
    folder: str,
    tmp_path_factory: pytest.TempPathFactory,
    ranks: int,
    stage: int,
    precision: Precision,
) -> None:
    reward_model = tiny.write_reward_model(tmp_path_factory.mktemp("reward-model"), folder)
    setup = trainer_setup(reward_model, zero_stage=stage, precision=precision, tokens_per_micro_batch=ODD)
    answers, clean = (
        processes[ranks](learn_spoiled_values, setup, by_rank=asked(places, ranks=ranks, algorithm=critic_algorithm))
        for places in (CRITIC, ())
    )
    check_no_trace(answers, clean, CRITIC)


def critic_algorithm(place: str, by: float) -> PPO:
    return SpoiledPPO(place=place, by=by)


def test_a_skipped_update_before_any_other_leaves_none_either(
    processes: dict[int, TrainerProcesses], folder: str
) -> None:
    step = step_of(LESSONS[0], GRPO(), ranks=2)
    setup = trainer_setup(folder, zero_stage=2, tokens_per_micro_batch=ODD)
    culprit: list[Call] = [STATE, ("gradient", (step, nan)), STATE, ("step", (step,)), STATE]
    other = [STATE, ("step", (step,)), STATE, ("step", (step,)), STATE]
    skipped = processes[2](learn_spoiled, setup, by_rank=[other, culprit])
    clean = processes[2](learn_spoiled, setup, [("step", (step,)), STATE])
    for own, undisturbed in zip(skipped, clean, strict=True):
        assert own[0] == own[2] and own[3:] == undisturbed


def test_the_schedule_goes_on_over_a_skipped_update(processes: dict[int, TrainerProcesses], folder: str) -> None:
    """An update's rate is that of its number: a run ends where its schedule does, however many were skipped."""
    first, second, third = (step_of(lesson, GRPO()) for lesson in LESSONS)
    setup = trainer_setup(folder, schedule=Schedule.LINEAR, total_updates=4)
    calls: list[Call] = [("step", (first,)), ("gradient", (second, nan)), ("step", (third,))]
    [reports] = processes[1](learn_spoiled, setup, calls)
    assert [report.skipped_updates for report in reports] == [0, 1, 0]
    assert [report.contributions["learning_rate"] for report in reports] == [1e-3, 7.5e-4, 5e-4]


# ----------------------------------------------------------------------------- numbers that are large


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), pytest.param(2, 3, marks=slow)])
def test_a_spike_in_the_gradient_is_told_and_teaches_no_more_than_the_clipped_gradient(
    processes: dict[int, TrainerProcesses], folder: str, ranks: int, stage: int
) -> None:
    first, second = (step_of(lesson, GRPO(), ranks=ranks) for lesson in LESSONS[:2])
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=ODD)
    plain, spiked = (
        processes[ranks](learn_spoiled, setup, [("spike", (first, factor)), ("step", (second,)), WEIGHTS])
        for factor in (1.0, 1e6)
    )
    assert [report.skipped_updates for own in spiked for report in own[:2]] == [0, 0] * ranks
    norms = [summed([own[0] for own in answers], "gradient_norm") for answers in (plain, spiked)]
    assert norms[0] > setup.train.max_grad_norm, "or there would be nothing to clip"
    assert norms[1] == pytest.approx(1e6 * norms[0], rel=1e-5)
    # Two updates move a weight by up to 2e-3.
    assert distance(plain[0][2], spiked[0][2]) < 5e-6


HELD = [
    *((f"{whose} log-prob", by) for whose in ("own", "old", "reference", "rollout") for by in (inf, -inf)),
    # Its response is rejected; the run stops at checks.logprob_gap_mean.
    ("rollout log-prob", nan),
]


@pytest.mark.parametrize(("place", "by"), HELD)
def test_an_infinite_log_prob_is_held_within_a_limit_and_its_update_is_finite(
    processes: dict[int, TrainerProcesses], folder: str, place: str, by: float
) -> None:
    setup = trainer_setup(folder, zero_stage=2, tokens_per_micro_batch=ODD)
    plain, held = (
        processes[1](learn_spoiled, setup, [("step", (step_of(LESSONS[1], policy_algorithm(place, own)),)), WEIGHTS])[0]
        for own in (0.0, by)
    )
    assert held[0].skipped_updates == 0
    assert all(tensor.isfinite().all() for tensor in held[1].values())
    assert 0 < distance(plain[1], held[1]) <= 2 * setup.train.learning_rate


def test_moments_that_are_not_finite_are_found_out_one_update_later(
    processes: dict[int, TrainerProcesses], folder: str
) -> None:
    setup = trainer_setup(folder, zero_stage=2)
    step = step_of(LESSONS[0], GRPO())
    [answers] = processes[1](break_moments, setup, step)
    assert [report.skipped_updates for report in answers] == [0, 0, 1, 1]


def break_moments(rank: RankInfo, setup: TrainerSetup, step: Any) -> list[UpdateReport]:
    """Runs in a trainer process: no gradient shows it until weights have moved by them."""
    from workers.policy_worker import PolicyWorker

    worker = PolicyWorker(setup, rank)
    reports = [policy_step(worker, step)]
    [moments] = worker._engine.optimizer.optimizer.state.values()
    moments["exp_avg"].fill_(nan)
    return [*reports, *(policy_step(worker, step) for _ in range(3))]
