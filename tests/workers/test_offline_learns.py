"""Every offline objective tells better sums from worse ones after a few steps, and not when labels are shuffled."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from sums import NANO, Course, Report, lessons_of, study
from trainers import TrainerProcesses, trainer_setup

from engine.algorithms.base import Objective
from engine.algorithms.dpo import DPO, LossType
from engine.algorithms.kto import KTO
from engine.algorithms.orpo import ORPO
from engine.algorithms.rm import RM
from engine.algorithms.simpo import SimPO
from engine.data.arithmetic import ArithmeticData
from engine.data.base import RowKind, Split

BY_ONE = (1,)
"""What the policy of examples/nano says too often: one too many."""
OBJECTIVES: dict[str, tuple[Objective, int]] = {
    "dpo": (DPO(), 20),
    "ipo": (DPO(loss_type=LossType.IPO), 20),
    "kto": (KTO(), 20),
    "orpo": (ORPO(odds_coef=1.0), 20),
    "simpo": (SimPO(), 20),
    "rm": (RM(center_coef=0.01), 100),
}
"""And how many steps each takes. A head that starts at nothing takes longer than a policy that can add already."""
every_objective = pytest.mark.parametrize(("objective", "steps"), OBJECTIVES.values(), ids=OBJECTIVES)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcesses]:
    trainer = TrainerProcesses(1, tmp_path_factory.mktemp("trainer"), deadline_s=240.0)
    yield trainer
    trainer.close()


def learned(trainer: TrainerProcesses, objective: Objective, steps: int, *, mislabelled: float = 0.0) -> Report:
    data = ArithmeticData(near_misses=BY_ONE, mislabelled_share=mislabelled)
    lessons = lessons_of(data, objective.rows, Split.TRAIN, number=2000)
    chance = random.Random(0)
    course = Course(
        objective=objective,
        batches=tuple(tuple(chance.sample(lessons, 48)) for _ in range(steps)),
        held_out=lessons_of(data, RowKind.PREFERENCES, Split.HELD_OUT, number=150),
        export="",
    )
    settings = {"learning_rate": 1e-3 if isinstance(objective, RM) else 3e-4, "total_updates": steps}
    settings |= {"warmup_updates": 5, "weight_decay": 0.0, "max_grad_norm": 1.0, "tokens_per_micro_batch": 10**6}
    [report] = trainer(study, trainer_setup(str(NANO), **settings), by_rank=[course])
    return report


@every_objective
def test_the_better_of_two_answers_is_known_where_it_was_never_shown(
    trainer: TrainerProcesses, objective: Objective, steps: int
) -> None:
    report = learned(trainer, objective, steps)
    assert report.held_out["accuracy"] >= (0.9 if isinstance(objective, RM) else 0.95)
    assert report.held_out["margin"] > 0


@every_objective
def test_labels_by_chance_teach_nothing(trainer: TrainerProcesses, objective: Objective, steps: int) -> None:
    report = learned(trainer, objective, steps, mislabelled=0.5)
    assert abs(report.held_out["accuracy"] - 0.5) < 0.2


def test_a_larger_beta_keeps_the_policy_nearer_to_its_reference(trainer: TrainerProcesses) -> None:
    near, middle, far = (learned(trainer, DPO(beta=beta), 20).divergence for beta in (2.0, 0.3, 0.05))
    assert 0 < near < 0.7 * middle < 0.7 * 0.7 * far


def test_before_the_first_update_a_pair_is_a_coin(trainer: TrainerProcesses) -> None:
    first = learned(trainer, DPO(), 1).first
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert abs(first["margin"]) < 1e-6
