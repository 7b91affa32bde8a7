"""One optimizer step is one optimizer step, however its rows are split, ordered, padded and dealt out.

In float64 the gradient is the same to twelve digits; through DeepSpeed the weights after three steps of Adam are those
of plain PyTorch on full batches, for every algorithm and every aggregation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, product
from math import inf, nan

import pytest
import tiny
import torch
from plain_training import Plain, by_its_own_loss, context_of, distance, plain_policy, summed
from tiny import ALL, EACH, ODD, count, made_up, outcomes_of, rollout_of, toy_groups, toy_rows, with_exact_norms
from trainers import TrainerProcesses, learn, step_of, trainer_setup
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from engine.algorithms.aggregation import Aggregation
from engine.algorithms.cispo import CISPO
from engine.algorithms.correction import Correction, ImportanceWeight
from engine.algorithms.dapo import DAPO
from engine.algorithms.dr_grpo import DrGRPO
from engine.algorithms.grpo import GRPO
from engine.algorithms.gspo import GSPO, Form
from engine.algorithms.policy_gradient import PolicyGradient
from engine.algorithms.ppo import PPO
from engine.algorithms.reinforce_pp import ReinforcePP
from engine.algorithms.reinforce_pp_baseline import ReinforcePPBaseline
from engine.algorithms.remax import ReMax
from engine.algorithms.rloo import RLOO, RatioOf
from workers.batches import append_blank, collate, pad_with_blank, select_experience
from workers.micro_batches import micro_batches, one_by_one
from workers.model import TokenScorer, ValueScorer, score_tokens, score_values
from workers.packing import attend_by_segment
from workers.records import Credit, Experience, Loss, ModelOutputs, Row, TokenLogprobs, Totals
from workers.whitening import whitened

slow = pytest.mark.slow
CPU = torch.device("cpu")
TEMPERATURE = 0.7

CORRECTION = Correction(weight=ImportanceWeight.SEQUENCE_TIS, floor=0.1, geometric_high=1.3, drift_limit=0.4)
"""In float64 some rollouts are rejected for their mean, some for their drift; weights reach both bounds."""
ALGORITHMS = {
    "grpo": GRPO(),
    "dr_grpo": DrGRPO(),
    "dapo": DAPO(),
    "rloo": RLOO(),
    "rloo-sequence": RLOO(ratio=RatioOf.SEQUENCE, aggregation=Aggregation.SEQ_MEAN_TOKEN_MEAN),
    "reinforce_pp": ReinforcePP(gamma=0.9),
    "reinforce_pp_baseline": ReinforcePPBaseline(kl_coef=0.05),
    "remax": ReMax(),
    "gspo": GSPO(),
    "gspo-token": GSPO(form=Form.TOKEN),
    "cispo": CISPO(),
    "ppo": PPO(kl_coef=0.05, gamma=0.99),
    "entropy": GRPO(entropy_coef=0.02, clip_dual=3.0),
    "corrected": DAPO(correction=CORRECTION),
}
MODES = {mode.value: GRPO(aggregation=mode) for mode in Aggregation}


# ----------------------------------------------------------------------------- float64, without DeepSpeed


ROWS = (*toy_rows((0, 1)), *toy_rows((2,)))
"""Twelve responses to three prompts; one of them holds a tool's tokens alone."""
BOUND = 1e-12


@dataclass(frozen=True)
class Gradient:
    of_parameters: torch.Tensor
    loss: float

    def is_that_of(self, other: Gradient) -> bool:
        apart = (self.of_parameters - other.of_parameters).norm() / other.of_parameters.norm()
        return bool(apart <= BOUND) and abs(self.loss - other.loss) <= BOUND * max(1.0, abs(other.loss))


@pytest.fixture(scope="module")
def scorer(folder: str) -> TokenScorer:
    return TokenScorer(with_exact_norms(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)))


@pytest.fixture(scope="module")
def packer(folder: str) -> TokenScorer:
    """The same policy, whose rows are packed."""
    scorer = TokenScorer(with_exact_norms(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)))
    attend_by_segment(scorer)
    return scorer


@pytest.fixture(scope="module")
def old(scorer: TokenScorer) -> dict[tuple[int, int], torch.Tensor]:
    """The policy's own log-probs, moved far enough for ratios to be clipped on both sides."""
    said = {}
    for row in ROWS:
        tokens_1S, prompt = context_of(row)
        with torch.no_grad():
            logits_TV = scorer.model(tokens_1S).logits[0, prompt - 1 : -1] / TEMPERATURE
        own_T = logits_TV.log_softmax(-1)[torch.arange(len(logits_TV)), tokens_1S[0, prompt:]]
        said[row.draw, row.sample] = own_T + 0.5 * torch.sin(7.0 * torch.arange(len(own_T)) + row.draw + row.sample)
    return said


@pytest.fixture
def of_rows(old: dict[tuple[int, int], torch.Tensor]) -> Callable[[Sequence[Row], PolicyGradient], Experience]:
    """These rows' past, credited on the whole batch, all in float64."""
    groups = toy_groups()

    def of_rows(rows: Sequence[Row], algorithm: PolicyGradient) -> Experience:
        batch = collate(rows, groups)
        batch = replace(
            batch,
            rollout_logprobs_BT=padded([old[row.draw, row.sample] - mismatch(row) for row in rows]),
            reward_B=torch.tensor([row.reward for row in rows], dtype=torch.float64),
        )
        outputs = ModelOutputs(
            tensors={
                "old_logprobs_BT": padded([old[row.draw, row.sample] for row in rows]),
                "reference_logprobs_BT": torch.from_numpy(made_up(tiny.reference_logprob, rows, groups)).double(),
                "values_BT": torch.from_numpy(made_up(tiny.critic_value, rows, groups)).double(),
            }
        )
        advantage_B = torch.from_numpy(algorithm.advantage(outcomes_of(rows, groups)))
        credit = algorithm.token_credit(batch, outputs, advantage_B, algorithm.initial_state())
        if algorithm.whiten:
            white_BT = whitened(credit.advantages_BT, batch.mask_BT, ddof=1, all_reduce=lambda sums: sums)
            credit = replace(credit, advantages_BT=white_BT)
        return Experience(batch=batch, outputs=outputs, credit=credit)

    return of_rows


def padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def mismatch(row: Row) -> torch.Tensor:
    """How far the rollout engine's log-probs lie below the old ones: another way in each sample of a group."""
    position_T = torch.arange(len(rollout_of(row, toy_groups()).token_ids), dtype=torch.float64)
    return 0.3 * torch.cos(5.0 * position_T + row.draw) - 0.25 * (row.sample - 1)


MicroLoss = Callable[[Experience, Totals], Loss]


def policy_loss_of(scorer: TokenScorer, algorithm: PolicyGradient) -> MicroLoss:
    def loss(past: Experience, totals: Totals) -> Loss:
        policy = score_tokens(
            scorer, past.batch, temperature=TEMPERATURE, device=CPU, entropy_gradient=algorithm.needs.entropy_gradient
        )
        return algorithm.policy_loss(policy, past, totals, algorithm.initial_state())

    return loss


def gradient(model: torch.nn.Module, micro_batches: Sequence[Experience], loss_of: MicroLoss) -> Gradient:
    """Summed over micro-batches, each divided by the totals of all rows."""
    model.zero_grad()
    total, totals = 0.0, count(ROWS, toy_groups())
    for past in micro_batches:
        loss = loss_of(past, totals).value
        loss.backward()
        total += float(loss.detach())
    return Gradient(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), total)


def cut_up(past: Experience, pieces: Sequence[Sequence[int]]) -> list[Experience]:
    return [select_experience(past, piece) for piece in pieces]


def to_a_budget(past: Experience, *, packing: bool) -> Sequence[Sequence[int]]:
    units = one_by_one(range(len(past.batch)))
    return micro_batches(past.batch, units, tokens_per_micro_batch=ODD, packing=packing)


def splits(past: Experience) -> dict[str, list[Experience]]:
    everything = range(len(ROWS))
    return {
        "one row each": cut_up(past, [[row] for row in everything]),
        "two and the rest": cut_up(past, [everything[:2], everything[2:]]),
        "a token budget": cut_up(past, to_a_budget(past, packing=False)),
        "seven more columns": [widened(past)],
        "blank rows between": cut_up(with_blank(past), [everything[5:], [len(ROWS)], everything[:5], [len(ROWS)]]),
    }


def packed_splits(past: Experience) -> dict[str, list[Experience]]:
    pieces = to_a_budget(past, packing=True)
    assert 1 < len(pieces) < len(to_a_budget(past, packing=False))
    return {
        "all in one row": [past],
        "packed to a token budget": cut_up(past, pieces),
        "packed, blank rows between": cut_up(with_blank(past), [range(5, len(ROWS)), [len(ROWS)], range(5)]),
    }


def mapped(past: Experience, change: Callable[[torch.Tensor], torch.Tensor]) -> Experience:
    """Every [B, T] tensor changed."""
    batch = past.batch
    names = ("token_ids_BT", "mask_BT", "rollout_logprobs_BT", "version_BT")
    return Experience(
        batch=replace(batch, **{name: change(getattr(batch, name)) for name in names}),
        outputs=ModelOutputs(tensors={name: change(tensor) for name, tensor in past.outputs.tensors.items()}),
        credit=Credit(advantages_BT=change(past.credit.advantages_BT), returns_BT=change(past.credit.returns_BT)),
    )


def widened(past: Experience) -> Experience:
    return mapped(past, lambda tensor_BT: torch.nn.functional.pad(tensor_BT, (0, 7)))


def with_blank(past: Experience) -> Experience:
    return replace(mapped(past, pad_with_blank), batch=append_blank(past.batch))


def poisoned(past: Experience, poison: float) -> Experience:
    """`poison` wherever the mask is off."""
    mask_BT = past.batch.mask_BT
    return mapped(past, lambda tensor: tensor.where(mask_BT, poison) if tensor.is_floating_point() else tensor)


EVERY_CASE = [
    pytest.param(replace(algorithm, aggregation=mode), id=f"{name}-{mode.value}")
    for name, algorithm in ALGORITHMS.items()
    for mode in Aggregation
]


@pytest.mark.parametrize("algorithm", EVERY_CASE)
def test_the_gradient_is_the_same_however_rows_are_split_padded_packed_and_ordered(
    scorer: TokenScorer,
    packer: TokenScorer,
    of_rows: Callable[[Sequence[Row], PolicyGradient], Experience],
    algorithm: PolicyGradient,
) -> None:
    loss_of, past = policy_loss_of(scorer, algorithm), of_rows(ROWS, algorithm)
    whole = gradient(scorer, [past], loss_of)
    assert whole.of_parameters.norm() > 1e-4, "a gradient of zero would be equal to itself"
    for name, pieces in splits(past).items():
        assert gradient(scorer, pieces, loss_of).is_that_of(whole), name
    for name, pieces in packed_splits(past).items():
        assert gradient(packer, pieces, policy_loss_of(packer, algorithm)).is_that_of(whole), name
    shuffled = [ROWS[(5 * number + 3) % len(ROWS)] for number in range(len(ROWS))]
    assert gradient(scorer, [of_rows(shuffled, algorithm)], loss_of).is_that_of(whole), "another order"


def test_the_toy_rollouts_try_every_branch_of_the_correction(
    scorer: TokenScorer, of_rows: Callable[[Sequence[Row], PolicyGradient], Experience]
) -> None:
    algorithm = ALGORITHMS["corrected"]
    past = of_rows(ROWS, algorithm)
    policy = score_tokens(scorer, past.batch, temperature=TEMPERATURE, device=CPU)
    weights = {w for w in CORRECTION.of(policy, past).weight_BT[past.batch.mask_BT].unique().tolist()}
    assert {0.0, 0.1, 2.0} < weights
    drifting = replace(CORRECTION, geometric_high=inf).of(policy, past).weight_BT == 0
    assert (drifting & past.batch.mask_BT).any(), "some are rejected for their drift alone"


@pytest.mark.parametrize("poison", [nan, inf, -1e30])
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_whatever_is_at_masked_positions_changes_no_bit_of_the_gradient(
    scorer: TokenScorer,
    of_rows: Callable[[Sequence[Row], PolicyGradient], Experience],
    name: str,
    poison: float,
) -> None:
    algorithm = ALGORITHMS[name]
    past, totals, state = of_rows(ROWS, algorithm), count(ROWS, toy_groups()), algorithm.initial_state()
    mask_BT = past.batch.mask_BT
    assert not mask_BT.all()
    with torch.no_grad():
        said = score_tokens(scorer, past.batch, temperature=TEMPERATURE, device=CPU)
    gradients = []
    for filled, filler in ((past, 0.0), (poisoned(past, poison), poison)):
        logprobs_BT = said.logprobs_BT.where(mask_BT, filler).requires_grad_()
        entropy_BT = said.entropy_BT.where(mask_BT, filler).requires_grad_()
        policy = TokenLogprobs(logprobs_BT=logprobs_BT, entropy_BT=entropy_BT)
        loss = algorithm.policy_loss(policy, filled, totals, state)
        loss.value.backward()
        assert all(value.isfinite() for value in loss.metrics.values())
        gradients.append((loss.value.detach(), logprobs_BT.grad, entropy_BT.grad))
    clean, dirty = gradients
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
    assert not dirty[1][~mask_BT].any() and dirty[1].any()
    if algorithm.needs.entropy_gradient:
        assert torch.equal(clean[2], dirty[2]) and not dirty[2][~mask_BT].any()


@pytest.mark.parametrize("mode", list(Aggregation))
def test_the_critics_gradient_is_the_same_however_rows_are_split_padded_and_packed(
    folder: str, of_rows: Callable[[Sequence[Row], PolicyGradient], Experience], mode: Aggregation
) -> None:
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float64)
    critic = ValueScorer(with_exact_norms(model))
    algorithm = PPO(aggregation=mode)

    def loss_of(past: Experience, totals: Totals) -> Loss:
        return algorithm.value_loss(score_values(critic, past.batch, device=CPU), past, totals)

    past = of_rows(ROWS, algorithm)
    whole = gradient(critic, [past], loss_of)
    for name, pieces in splits(past).items():
        assert gradient(critic, pieces, loss_of).is_that_of(whole), name
    same = gradient(critic, [poisoned(past, nan)], loss_of)
    assert torch.equal(same.of_parameters, whole.of_parameters)
    attend_by_segment(critic)
    for name, pieces in packed_splits(past).items():
        assert gradient(critic, pieces, loss_of).is_that_of(whole), name


def test_the_comparison_would_notice_a_mean_of_micro_batch_means(
    scorer: TokenScorer, of_rows: Callable[[Sequence[Row], PolicyGradient], Experience]
) -> None:
    algorithm = ALGORITHMS["dapo"]
    loss_of, past = policy_loss_of(scorer, algorithm), of_rows(ROWS, algorithm)
    whole = gradient(scorer, [past], loss_of)
    pieces = [range(2), range(2, len(ROWS))]

    def local_mean(micro_batch: Experience, totals: Totals) -> Loss:
        own = replace(totals, tokens=int(micro_batch.batch.mask_BT.sum()) * len(pieces))
        return loss_of(micro_batch, own)

    wrong = gradient(scorer, cut_up(past, pieces), local_mean)
    assert (wrong.of_parameters - whole.of_parameters).norm() > 1e-2 * whole.of_parameters.norm()


# ----------------------------------------------------------------------------- through DeepSpeed


LESSONS = ((toy_rows((0, 1)), toy_rows((2, 3))), (toy_rows((4, 5)),))
"""Three updates: in the second the policy is no longer the one that was asked for the old log-probs."""
BACKWARDS = tuple(tuple(rows[::-1] for rows in lesson) for lesson in LESSONS)
TAUGHT = {**ALGORITHMS, **MODES}
PADDED, PACKED = False, True
WAYS = (
    (2, 1, ODD, PACKED), (1, 3, EACH, PADDED), (2, 0, EACH, PADDED), (1, 2, ODD, PADDED), (2, 3, ODD, PACKED),
    (1, 0, ALL, PACKED), (2, 2, ALL, PADDED), (1, 1, EACH, PADDED),
)  # fmt: skip
"""Ranks, ZeRO stage, tokens of a micro-batch, how its rows lie."""
QUICK = {
    *((name, *way) for name, way in zip(TAUGHT, cycle(WAYS), strict=False)),
    # Whitened over all ranks.
    ("reinforce_pp", 2, 1, ODD, PADDED), ("reinforce_pp_baseline", 2, 0, ALL, PADDED), ("ppo", 2, 1, EACH, PADDED),
    ("ppo", 2, 2, ODD, PACKED), ("gspo", 1, 3, ODD, PACKED), ("rloo-sequence", 2, 0, ODD, PACKED),
    ("dapo", 2, 3, ODD, PADDED), ("corrected", 2, 1, ODD, PACKED),
}  # fmt: skip
EVERY_WAY = [
    pytest.param(*case, marks=() if case in QUICK else slow)
    for case in product(TAUGHT, (1, 2), (0, 1, 2, 3), (ALL, EACH, ODD), (PADDED, PACKED))
    if case[-2] != EACH or case[-1] is PADDED
]


@pytest.fixture(scope="module")
def plain_of(folder: str) -> Callable[[str], Plain]:
    done: dict[str, Plain] = {}

    def plain_of(name: str) -> Plain:
        if name not in done:
            teacher = by_its_own_loss(TAUGHT[name])
            done[name] = plain_policy(trainer_setup(folder), LESSONS, teacher, temperature=TEMPERATURE)
        return done[name]

    return plain_of


@pytest.mark.parametrize(("name", "ranks", "stage", "budget", "packing"), EVERY_WAY)
def test_three_updates_of_every_algorithm_are_those_of_full_batches(
    processes: dict[int, TrainerProcesses], folder: str, plain_of: Callable[[str], Plain],
    name: str, ranks: int, stage: int, budget: int, packing: bool,
) -> None:  # fmt: skip
    expected = plain_of(name)
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=budget, packing=packing)
    lessons = BACKWARDS if budget == ODD else LESSONS
    steps = [("step", (step_of(lesson, TAUGHT[name], ranks=ranks),)) for lesson in lessons]
    answers = processes[ranks](learn, setup, [*steps, ("weights", ())])
    # Measured: 2e-6. Three updates move a weight by up to 3e-3.
    assert distance(answers[0][-1], expected.weights) < 1e-5
    for number, updates in enumerate((slice(0, 2), slice(2, 3))):
        reports = [answer[number] for answer in answers]
        # A loss is a sum of terms of about 1 that nearly cancel.
        assert mean(expected.losses[updates]) == pytest.approx(summed(reports, "loss"), rel=1e-6, abs=1e-6)
        # Of weights that are themselves apart by then. Measured: 2e-6, where the ratio is of whole responses; 1e-6
        # elsewhere.
        assert mean(expected.norms[updates]) == pytest.approx(summed(reports, "gradient_norm"), rel=5e-6)


@pytest.mark.parametrize(("name", "way"), list(zip(TAUGHT, cycle(WAYS), strict=False)))
def test_an_updates_gradient_is_float64s_to_a_millionth(
    processes: dict[int, TrainerProcesses], folder: str, name: str, way: tuple[int, int, int, bool]
) -> None:
    ranks, stage, budget, packing = way
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=budget, packing=packing)
    lesson, teacher = LESSONS[1], by_its_own_loss(TAUGHT[name])
    exact = plain_policy(setup, (lesson,), teacher, temperature=TEMPERATURE, dtype=torch.float64)
    answers = processes[ranks](learn, setup, [("step", (step_of(lesson, TAUGHT[name], ranks=ranks),))])
    reports = [answer[0] for answer in answers]
    # Measured: 2.3e-7 at most.
    assert summed(reports, "gradient_norm") == pytest.approx(exact.norms[0], rel=1e-6)
    assert summed(reports, "loss") == pytest.approx(exact.losses[0], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_recomputing_activations_of_packed_rows_changes_no_update(
    processes: dict[int, TrainerProcesses], folder: str, plain_of: Callable[[str], Plain], ranks: int
) -> None:
    setup = trainer_setup(folder, zero_stage=3, tokens_per_micro_batch=ODD, packing=PACKED, gradient_checkpointing=True)
    steps = [("step", (step_of(lesson, TAUGHT["ppo"], ranks=ranks),)) for lesson in LESSONS]
    answers = processes[ranks](learn, setup, [*steps, ("weights", ())])
    assert distance(answers[0][-1], plain_of("ppo").weights) < 1e-5


@pytest.mark.parametrize(("name", "ranks", "stage"), [("ppo", 2, 1), ("gspo", 1, 1), ("cispo", 2, 3), ("rloo", 1, 0)])
def test_several_updates_in_two_epochs_are_those_of_full_batches(
    processes: dict[int, TrainerProcesses], folder: str, name: str, ranks: int, stage: int
) -> None:
    lesson, algorithm = LESSONS[0], ALGORITHMS[name]
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=ODD, epochs_per_step=2)
    expected = plain_policy(setup, (lesson,), by_its_own_loss(algorithm), temperature=TEMPERATURE)
    answers = processes[ranks](learn, setup, [("step", (step_of(lesson, algorithm, ranks=ranks),)), ("weights", ())])
    reports = [answer[0] for answer in answers]
    assert len(expected.losses) == 4
    assert distance(answers[0][1], expected.weights) < 1e-5
    assert mean(expected.losses) == pytest.approx(summed(reports, "loss"), rel=1e-6, abs=1e-6)
    tokens = sum(count(rows, toy_groups()).tokens for rows in lesson)
    assert sum(report.action_tokens for report in reports) == 2 * tokens


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
