"""Who learns from the toy rollouts: trainers of policy and critic, in processes that stay warm between tests."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny import critic_value, deal, made_up, outcomes_of, reference_logprob, return_of, toy_groups

from engine.algorithms.base import Algorithm
from engine.algorithms.grpo import GRPO
from engine.experience import Assignment, advantages
from workers.config import Device, ModelConfig, Precision, TrainConfig, TuningConfig
from workers.records import Group, Row
from workers.tally import UpdateReport

if TYPE_CHECKING:
    import torch

    from workers.critic_worker import CriticWorker
    from workers.meeting import MeetingPoint
    from workers.policy_worker import PolicyWorker
    from workers.train_worker import RankInfo, TrainerSetup, TrainWorker

ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
"""Of the trainer processes."""
STACKS_SIGNAL, WRITTEN_WITHIN_S = signal.SIGUSR1, 2.0
"""As in workers/stacks.py, which needs Ray."""


def trainer_setup(
    path: str,
    *,
    precision: Precision = Precision.FLOAT32,
    gradient_checkpointing: bool = False,
    total_updates: int = 4,
    **train: Any,
) -> TrainerSetup:
    """Adam's eps lies well above float32's noise in a gradient and well below the gradients themselves, so that noise
    is not blown up to a whole step."""
    from workers.train_worker import TrainerSetup

    settings = {"learning_rate": 1e-3, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1, "max_grad_norm": 0.1}
    return TrainerSetup(
        model=ModelConfig(path=path, precision=precision, gradient_checkpointing=gradient_checkpointing),
        train=TrainConfig(**(settings | train)),
        device=Device.CPU,
        seed=0,
        total_updates=total_updates,
        tuning=TuningConfig(),
    )


UpdateRows = tuple[tuple[Row, ...], ...]
"""One batch of rollouts: the rows of each of its updates."""
Call = tuple[str, tuple[Any, ...]]
"""A verb of a trainer's worker and its arguments; or ("step", (Step(...),)) or ("weights", ())."""


WEIGHTS: Call = ("weights", ())


@dataclass(frozen=True, kw_only=True)
class Step:
    """One batch of rollouts, as all ranks are told of it together."""

    batch: Assignment
    algorithm: Algorithm
    groups: tuple[Group, ...]
    temperature: float = 0.7
    filler: float = 0.0
    """What other models say where nobody may look."""
    worth: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """Advantages by (draw, sample) that replace those of the algorithm."""

    def rows(self, rank: int) -> list[Row]:
        return [row for update in self.batch.shares[rank] for row in update.rows]


def step_of(
    lesson: UpdateRows, algorithm: Algorithm, *, ranks: int = 1, groups: Sequence[Group] | None = None, **more: Any
) -> Step:
    groups = tuple(groups or toy_groups())
    everybody = [row for rows in lesson for row in rows]
    shares = tuple(zip(*(deal(rows, groups, ranks=ranks) for rows in lesson), strict=True))
    places = tuple(
        np.array([everybody.index(row) for update in share for row in update.rows], dtype=np.int64) for share in shares
    )
    batch = Assignment(shares=shares, groups=((),) * ranks, outcomes=outcomes_of(everybody, groups), places=places)
    return Step(batch=batch, algorithm=algorithm, groups=groups, **more)


def learn(rank: RankInfo, setup: TrainerSetup, calls: Sequence[Call]) -> list[Any]:
    """Runs in a trainer process: a fresh PolicyWorker does these calls, one after the other; what each returned."""
    from workers.policy_worker import PolicyWorker

    return _done(PolicyWorker(setup, rank), calls, step=policy_step, weights=_published)


def learn_values(rank: RankInfo, setup: TrainerSetup, calls: Sequence[Call]) -> list[Any]:
    """The same with a CriticWorker."""
    from workers.critic_worker import CriticWorker

    return _done(CriticWorker(setup, replace(rank, role="critic")), calls, step=critic_step, weights=_gathered)


def learn_judging(rank: RankInfo, setup: TrainerSetup, calls: Sequence[Call]) -> list[Any]:
    """The same with a RewardModelWorker."""
    from workers.reward_model_worker import RewardModelWorker

    return _done(RewardModelWorker(setup, rank), calls, weights=_gathered)


def _done(worker: Any, calls: Sequence[Call], **extra: Callable[..., Any]) -> list[Any]:
    return [extra[verb](worker, *args) if verb in extra else getattr(worker, verb)(*args) for verb, args in calls]


def grpo_calls(
    lessons: Sequence[UpdateRows], *, ranks: int = 1, kl_coef: float = 0.04, **more: Any
) -> list[list[Call]]:
    """What each rank is asked to do: one step a lesson."""
    return [[("step", (step_of(lesson, GRPO(kl_coef=kl_coef), ranks=ranks, **more),)) for lesson in lessons]] * ranks


def run(trainer: TrainerProcesses, setup: TrainerSetup, calls: list[list[Call]], *more: Call) -> list[list[Any]]:
    """Each rank's answers; `more` is asked of every rank in the end."""
    return trainer(learn, setup, by_rank=[[*of_rank, *more] for of_rank in calls])


def policy_step(worker: PolicyWorker, step: Step) -> UpdateReport:
    """Look, credit, update; between the first two the driver's part, on every rank."""
    rank, algorithm = worker._rank.rank, step.algorithm
    state, rows = algorithm.initial_state(), step.rows(rank)
    reference, critic = {}, {}
    if algorithm.needs.reference:
        reference = {"reference_logprobs_BT": made_up(reference_logprob, rows, step.groups, filler=step.filler)}
    if algorithm.needs.critic:
        critic = {"values_BT": made_up(critic_value, rows, step.groups, filler=step.filler)}
    own = worker.look(step.batch.shares[rank], algorithm, step.temperature, reference, critic, *step.groups)
    worth = advantages(step.batch, algorithm, state, divergence=_from_all_ranks(worker, own))[0][rank]
    worth = np.array([step.worth.get((row.draw, row.sample), a) for row, a in zip(rows, worth, strict=True)])
    worker.credit(worth, algorithm, state)
    return worker.update(algorithm, state)


def _from_all_ranks(worker: PolicyWorker, own: np.ndarray) -> list[np.ndarray]:
    import torch.distributed

    said: list[np.ndarray] = [own] * worker._rank.world_size
    if len(said) > 1:
        torch.distributed.all_gather_object(said, own)
    return said


def critic_step(worker: CriticWorker, step: Step) -> UpdateReport:
    rank = worker._rank.rank
    worker.values(step.batch.shares[rank], *step.groups)
    returns_BT = made_up(return_of, step.rows(rank), step.groups, filler=step.filler)
    return worker.update(step.algorithm, {"returns_BT": returns_BT})


def _published(worker: PolicyWorker) -> dict[str, torch.Tensor] | None:
    """From where rollout engines find them, on rank 0."""
    from workers.weight_sync import read_weights

    manifest = worker.publish(version=0)
    return None if manifest is None else {name: tensor.clone() for name, tensor in read_weights(manifest)}


def _gathered(worker: TrainWorker) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in worker._whole_weights()}


@dataclass
class TrainerProcesses:
    """One process a rank: DeepSpeed takes seconds to import and must not live in the tests' own process.

    After a failure all ranks are replaced, so that no test inherits another's.
    """

    ranks: int
    folder: Path
    deadline_s: float = 120.0

    def __post_init__(self) -> None:
        self._open = ExitStack()
        self.start()

    def start(self) -> None:
        from workers.meeting import meeting_point

        # All ranks are forked from one fresh process that has paid for the imports.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["deepspeed", "transformers.models.qwen2.modeling_qwen2", "workers.policy_worker", "workers.critic_worker"]
        )
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            forkserver.ensure_running()
        meeting = self._open.enter_context(meeting_point("127.0.0.1"))
        self._processes, self._lines = [], []
        for rank in range(self.ranks):
            line, far_end = context.Pipe()
            process = context.Process(
                target=_serve, args=(far_end, rank, self.ranks, meeting, str(self._log(rank))), daemon=True
            )
            process.start()
            far_end.close()
            self._processes.append(process)
            self._lines.append(line)

    def __call__(self, function: Callable[..., Any], *args: Any, by_rank: Sequence[Any] | None = None) -> list[Any]:
        """`function(rank, *args, by_rank[rank])` on every rank; raises what a rank raised."""
        for rank, line in enumerate(self._lines):
            line.send((function, args if by_rank is None else (*args, by_rank[rank])))
        answers: dict[int, Any] = {}
        while len(answers) < self.ranks:
            # Whoever answers first: where one fails, the others may wait for it for good.
            waiting = [line for rank, line in enumerate(self._lines) if rank not in answers]
            ready = wait(waiting, self.deadline_s)
            if not ready:
                doing = self._stacks()
                self.restart()
                raise TimeoutError(f"of {self.ranks} ranks only {sorted(answers)} answered in time\n{doing}")
            for line in ready:
                rank = self._lines.index(line)
                failure, answers[rank] = line.recv()
                if failure:
                    self.restart()
                    raise RuntimeError(f"rank {rank} of {self.ranks}:\n{failure}")
        return [answers[rank] for rank in range(self.ranks)]

    def _log(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}-of-{self.ranks}.log"

    def _stacks(self) -> str:
        """What every rank is doing, and what it said before."""
        began = [self._log(rank).stat().st_size for rank in range(self.ranks)]
        for process in self._processes:
            os.kill(process.pid, STACKS_SIGNAL)
        time.sleep(WRITTEN_WITHIN_S)
        return "\n".join(
            f"----- rank {rank}\n{self._log(rank).read_bytes()[max(0, before - 2_000) :].decode(errors='replace')}"
            for rank, before in enumerate(began)
        )

    def restart(self) -> None:
        self.close(patience_s=0.0)
        self.start()

    def close(self, patience_s: float = 5.0) -> None:
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.join(patience_s)
            process.kill()
            process.join()
        self._open.close()


def _serve(line: Connection, rank: int, ranks: int, meeting: MeetingPoint, log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    import torch

    from workers.train_worker import RankInfo

    torch.set_num_threads(1)
    info = RankInfo(role="policy", rank=rank, world_size=ranks, meeting=meeting)
    while True:
        try:
            function, args = line.recv()
        except EOFError:
            sys.exit()
        try:
            answer = (None, function(info, *args))
        except Exception:  # whatever it is, the test must see it
            answer = (traceback.format_exc(), None)
        line.send(answer)


def forward_passes(rank: RankInfo, setup: TrainerSetup, step: Step) -> tuple[int, UpdateReport]:
    """Runs in a trainer process: how often the model was asked during a step, and the step's report."""
    from workers.policy_worker import PolicyWorker

    worker, passes = PolicyWorker(setup, rank), []
    worker._model.base_model.register_forward_hook(lambda *_: passes.append(1))
    report = policy_step(worker, step)
    return len(passes), report


def learn_after_another(rank: RankInfo, earlier: TrainerSetup, setup: TrainerSetup, calls: Sequence[Call]) -> list[Any]:
    """Runs in a trainer process: `learn`, while rank 0 still holds a worker that was there before."""
    from workers.policy_worker import PolicyWorker

    held = PolicyWorker(earlier, rank)
    if rank.rank:
        del held
        gc.collect()
    return learn(rank, setup, calls)


def reference_and_trainer(rank: RankInfo, setup: TrainerSetup, step: Step) -> dict[str, Any]:
    """Runs in a trainer process: what the frozen copy and the trainer say of the same rows, and the first update."""
    from workers.batches import append_blank, collate
    from workers.frozen_worker import FrozenWorker
    from workers.policy_worker import PolicyWorker

    share, temperature = step.batch.shares[0], step.temperature
    train = setup.train
    frozen = FrozenWorker(setup.model, Device.CPU, setup.seed, train.tokens_per_micro_batch, train.packing)
    outputs = frozen.reference_outputs(share, temperature, *step.groups)
    worker = PolicyWorker(setup, rank)
    policy = worker.logprobs(append_blank(collate(step.rows(0), step.groups)), temperature=temperature)[:-1].numpy()
    state = step.algorithm.initial_state()
    worker.look(share, step.algorithm, temperature, outputs, {}, *step.groups)
    worker.credit(np.array([row.reward for row in step.rows(0)]), step.algorithm, state)
    report = worker.update(step.algorithm, state)
    return {"reference": outputs["reference_logprobs_BT"], "policy": policy, "report": report}
