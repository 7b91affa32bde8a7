"""A whole step of the policy's trainer, on its DeepSpeed engine: look, credit, update.

Each in a process of its own: a trainer keeps its process group, and its memory is told from nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.algorithms.grpo import GRPO
from tests.bench._made_up import rows_of
from tests.gpu._device import wait
from tests.gpu._models import (
    QWEN2,
    REAL_GROUP,
    SEED,
    TINY_GROUP,
    GroupSize,
    batch_of,
    config_of,
    groups_of,
    model_flops,
    tokens_of,
)
from workers.config import Device, ModelConfig, Precision, TrainConfig, TuningConfig, Weights
from workers.memory import Peaks
from workers.records import Group, Totals, Update

if TYPE_CHECKING:
    from workers.policy_worker import PolicyWorker

VERBS = ("look", "credit", "update")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCase:
    """One optimizer step of GRPO on all rows, without a reference: weights in bfloat16, Adam on float32 copies."""

    model: str
    group: GroupSize
    groups: int
    tokens_per_micro_batch: int


CASES = tuple(
    StepCase(model=model, group=REAL_GROUP, groups=16, tokens_per_micro_batch=8192)
    for model in ("Qwen2.5-0.5B", "Qwen2.5-1.5B")
)
TINY = (StepCase(model="tiny", group=TINY_GROUP, groups=4, tokens_per_micro_batch=100),)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTaken:
    """What a step takes, by verb."""

    seconds: dict[str, float]
    """Medians."""
    peaks_gib: dict[str, float]
    """As a run tells them: `<verb>_gib` of the process, and `<verb>_device_gib` where there is a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    model: str
    tokens: int
    """Every response, and every prompt once."""
    rows: int
    seconds: float
    """Of the three verbs together."""
    tokens_per_s: float
    mfu: float
    """Model operations of one forward and backward pass (6 x matmul parameters x tokens, and attention: see
    `model_flops`) a second, over the measured matmul peak; the optimizer's time counts, its operations do not."""
    verbs: StepTaken


def measure_step(case: StepCase, device: torch.device, *, peak: float, repeats: int) -> StepFigures | None:
    """None where memory has no room for it. `peak`: operations a second."""
    batch = batch_of(_groups(case))
    tokens, flops = tokens_of(batch), model_flops(QWEN2[case.model], batch)
    # A fresh process: nothing of what was measured here is on its device.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_prepare, initargs=(device.type,)) as process:
        own = process.submit(step_here, case, device.type, repeats=repeats).result()
    if own is None:
        return None
    seconds = sum(own.seconds.values())
    return StepFigures(
        model=case.model,
        tokens=tokens,
        rows=len(batch),
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        mfu=flops / seconds / peak,
        verbs=own,
    )


def _prepare(device: str) -> None:
    """Before anything imports DeepSpeed, which looks for its device by itself and talks to where JSON may go."""
    os.dup2(2, 1)
    os.environ["DS_ACCELERATOR"] = device
    if device == "cpu":
        torch.set_num_threads(1)


def _groups(case: StepCase) -> tuple[Group, ...]:
    return groups_of(case.group, groups=case.groups, vocabulary=QWEN2[case.model].vocabulary)


def step_here(case: StepCase, device: str, *, repeats: int) -> StepTaken | None:
    """In this process, which has no trainer yet; None where memory has no room for it."""
    try:
        with _trainer(case, device, total_updates=repeats + 1) as worker:
            return _steps(worker, _groups(case), torch.device(device), repeats=repeats)
    except torch.OutOfMemoryError:
        return None


@contextmanager
def _trainer(case: StepCase, device: str, *, total_updates: int) -> Iterator[PolicyWorker]:
    # DeepSpeed takes seconds to import, and belongs to the process that trains.
    from workers.meeting import meeting_point
    from workers.policy_worker import PolicyWorker
    from workers.train_worker import RankInfo, TrainerSetup

    with TemporaryDirectory() as folder, meeting_point("127.0.0.1") as meeting:
        config_of(QWEN2[case.model]).save_pretrained(Path(folder))
        setup = TrainerSetup(
            model=ModelConfig(path=folder, weights=Weights.RANDOM, precision=Precision.BFLOAT16),
            train=TrainConfig(tokens_per_micro_batch=case.tokens_per_micro_batch),
            device=Device(device),
            seed=SEED,
            total_updates=total_updates,
            tuning=TuningConfig(),
        )
        try:
            yield PolicyWorker(setup, RankInfo(role="policy", rank=0, world_size=1, meeting=meeting))
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _steps(worker: PolicyWorker, groups: tuple[Group, ...], device: torch.device, *, repeats: int) -> StepTaken:
    """The first one warms up."""
    algorithm, rows, peaks = GRPO(kl_coef=0.0), rows_of(groups), Peaks()
    state, worth = algorithm.initial_state(), np.array([row.reward for row in rows])
    lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    totals = Totals(tokens=sum(lengths), sequences=len(rows), prompts=len(groups), horizon=max(lengths))
    updates = (Update(rows=rows, totals=totals),)
    seconds: dict[str, list[float]] = {verb: [] for verb in VERBS}
    for turn in range(repeats + 1):
        asked: dict[str, Callable[[], object]] = {
            "look": lambda: worker.look(updates, algorithm, 1.0, {}, {}, *groups),
            "credit": lambda: worker.credit(worth, algorithm, state),
            "update": lambda: worker.update(algorithm, state),
        }
        for verb, ask in asked.items():
            start = time.perf_counter()
            with peaks.of(verb):
                answer = ask()
                wait(device)
            if turn:
                seconds[verb].append(time.perf_counter() - start)
        if answer.skipped_updates or answer.action_tokens != totals.tokens:
            raise RuntimeError(f"not every token was learned from, and no figure means anything: {answer}")
        if not turn:
            peaks.take()
    return StepTaken(
        seconds={verb: statistics.median(turns) for verb, turns in seconds.items()}, peaks_gib=peaks.take()
    )
