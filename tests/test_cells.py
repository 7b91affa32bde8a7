"""Every approach x every tuning: three steps each, along the shipped code path, in one process without Ray.

What is learned changes, everything else stays as it was to the last bit, and what is exported says the same once it is
loaded again. The same cells through `python -m engine.main` are behind `slow`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.append(str(Path(__file__).parent / "workers"))

from runs import REPOSITORY
from trainers import TrainerProcesses, critic_step, policy_step, step_of

from engine.config import Config, load_config
from engine.resume import SavePoints, find_start, open_checkpoints
from engine.stopping import StopSignals
from engine.tasks import prepare_offline
from engine.tracking import Tracker

if TYPE_CHECKING:
    import torch

    from workers.lessons import Objective, Share
    from workers.records import Totals
    from workers.tally import UpdateReport
    from workers.train_worker import RankInfo, TrainWorker

APPROACHES = ("pt", "sft", "rm", "ppo", "dpo", "kto", "orpo", "simpo")
TUNINGS = ("full", "freeze", "lora", "qlora", "oft", "qoft")
STEPS = 3
LAYERS = 4
"""Of nano."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a model's three steps did."""

    changed: frozenset[str]
    """Parameters that are not what they were, bit for bit."""
    kept: frozenset[str]
    metrics: tuple[dict[str, float], ...]
    """Of each step."""
    difference: float
    """Between the trained model and what was exported of it, loaded again."""
    exported: tuple[str, ...]
    """File names."""


# ----------------------------------------------------------------------------- in a trainer process


class OneStudent:
    """The group of one worker that lives right here."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def fit(self, shares: Sequence[Share], totals: Totals, objective: Objective) -> list[UpdateReport]:
        return [self._worker.fit(shares[0], totals, objective)]

    def assess(self, shares: Sequence[Share], totals: Totals, objective: Objective) -> list[UpdateReport]:
        return [self._worker.assess(shares[0], totals, objective)]

    def first_logprobs(self, shares: Sequence[Any]) -> list[Any]:
        return [self._worker.first_logprobs(shares[0])]

    def save(self, folder: Path) -> Callable[[], list[Any]]:
        """Written when this returns; there is nothing to wait for."""
        written = [self._worker.save(folder)]
        return lambda: written


class NoCritic:
    def save(self, folder: Path) -> Callable[[], list[Any]]:
        """There is none."""
        return list


@dataclass(frozen=True)
class OneWorker:
    policy: OneStudent
    critic: NoCritic

    def vitals(self) -> dict[str, float]:
        """Nobody asks for them here."""
        return {}


def learn_offline(rank: RankInfo, argv: Sequence[str], folder: Path) -> Learned:
    """`engine.main` without Ray: the same settings, rows, loop, worker, checkpoint and export."""
    from engine.offline import train_offline
    from workers.policy_worker import PolicyWorker
    from workers.reward_model_worker import RewardModelWorker
    from workers.team import policy_setup

    config = load_config(argv)
    team = config.team()
    worker = (RewardModelWorker if team.policy_judges else PolicyWorker)(policy_setup(team), rank)

    def learn() -> None:
        checkpoints, task = open_checkpoints(config, moving_aside=True), prepare_offline(config)
        with closing(Tracker(config)) as tracker:
            start = find_start(config, task.fingerprint, checkpoints, tracker)
            workers = OneWorker(OneStudent(worker), NoCritic())
            stop, committed = StopSignals(), lambda: None
            saves = SavePoints(config, task, workers, tracker, checkpoints, start, stop=stop, committed=committed)
            train_offline(config, task, start, workers, tracker, saves)

    return _watched(worker, learn, config, folder)


def learn_ppo(rank: RankInfo, argv: Sequence[str], folder: Path) -> dict[str, Learned]:
    """Policy and critic of PPO, on made-up rollouts."""
    from dataclasses import replace

    from tiny import toy_rows

    from workers.critic_worker import CriticWorker
    from workers.policy_worker import PolicyWorker
    from workers.team import critic_setup, policy_setup

    config = load_config(argv)
    team = config.team()
    step = step_of((toy_rows((0, 1)),), config.algo)
    learned = {}
    for role, kind, setup, take in (
        ("policy", PolicyWorker, policy_setup(team), policy_step),
        ("critic", CriticWorker, critic_setup(team), critic_step),
    ):
        worker = kind(setup, replace(rank, role=role))
        reports: list[Any] = []

        def learn(worker: Any = worker, take: Any = take, reports: list[Any] = reports) -> None:
            reports += [take(worker, step) for _ in range(STEPS)]

        seen = _watched(worker, learn, config, folder / role, exports=role == "policy")
        metrics = tuple(dict(report.contributions) for report in reports)
        learned[role] = replace(seen, metrics=metrics)
    return learned


def _watched(
    worker: TrainWorker, learn: Callable[[], None], config: Config, folder: Path, *, exports: bool = True
) -> Learned:
    from workers.exporting import largest_difference

    before = _bytes_of(worker)
    learn()
    after = _bytes_of(worker)
    changed = frozenset(name for name in before if before[name] != after[name])
    difference, exported = 0.0, ()
    if exports:
        worker.export(folder / "export")
        # It has learned from packed rows, and is asked about padded ones.
        worker._model.set_attn_implementation("sdpa")
        team = config.team()
        difference = largest_difference(
            worker._model,
            folder / "export",
            team.model,
            team.tuning,
            as_adapter=team.tuning.has_adapter,
            judges=team.policy_judges,
        )
        exported = tuple(sorted(path.name for path in (folder / "export").iterdir()))
    file = config.run_folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return Learned(
        changed=changed,
        kept=frozenset(before) - changed,
        metrics=tuple(row for row in rows if "loss" in row),
        difference=difference,
        exported=exported,
    )


def _bytes_of(worker: TrainWorker) -> dict[str, bytes]:
    """Every parameter, quantized ones as they lie in memory."""
    import torch

    def raw(tensor: torch.Tensor) -> bytes:
        return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    return {name: raw(parameter) for name, parameter in worker._model.named_parameters()}


# ----------------------------------------------------------------------------- what must have been learned


def should_learn(name: str, tuning: str, *, has_head: bool) -> bool:
    """Written down by name, not asked of the code."""
    if has_head and name.startswith("score"):
        # PEFT keeps the untrained head beside the one that learns.
        return "original_module" not in name
    if tuning == "full":
        return True
    if tuning == "freeze":
        return any(f"layers.{number}." in name for number in (LAYERS - 2, LAYERS - 1))
    return any(part in name for part in (("lora_A", "lora_B") if "lora" in tuning else ("oft_R",)))


def check(learned: Learned, tuning: str, *, has_head: bool) -> None:
    names = learned.changed | learned.kept
    intended = {name for name in names if should_learn(name, tuning, has_head=has_head)}
    assert intended and learned.changed == intended
    assert len(learned.metrics) == STEPS
    for metrics in learned.metrics:
        assert math.isfinite(metrics["loss"]) and metrics.get("skipped_updates", 0) == 0
    assert learned.difference < 1e-4


def overrides_of(approach: str, tuning: str, folder: Path) -> list[str]:
    return [
        f"algo={approach}",
        f"tuning={tuning}",
        "data.largest=9",
        "data.held_out=8",
        "train.learning_rate=1e-2",
        "train.examples_per_step=8",
        f"run.steps={STEPS}",
        f"run.folder={folder}",
        "run.name=cell",
        "run.tensorboard=false",
        *(["critic.learning_rate=1e-2", "critic.warmup_updates=0", "algo.kl_coef=0"] if approach == "ppo" else []),
        "train.warmup_updates=0",
    ]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcesses]:
    process = TrainerProcesses(1, tmp_path_factory.mktemp("trainer"))
    yield process
    process.close()


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("approach", [name for name in APPROACHES if name != "ppo"])
def test_a_cell_learns_what_it_should_and_exports_what_it_learned(
    approach: str, tuning: str, trainer: TrainerProcesses, tmp_path: Path
) -> None:
    (learned,) = trainer(learn_offline, overrides_of(approach, tuning, tmp_path), tmp_path)
    check(learned, tuning, has_head=approach == "rm")
    is_adapter = "adapter_model.safetensors" in learned.exported
    assert is_adapter == (tuning not in ("full", "freeze"))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_cell_of_ppo_learns_what_it_should_and_exports_what_it_learned(
    tuning: str, trainer: TrainerProcesses, tmp_path: Path
) -> None:
    (learned,) = trainer(learn_ppo, overrides_of("ppo", tuning, tmp_path), tmp_path)
    check(learned["policy"], tuning, has_head=False)
    check(learned["critic"], tuning, has_head=True)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("approach", APPROACHES)
def test_a_cell_runs_from_the_command_line(approach: str, tuning: str, tmp_path: Path) -> None:
    small = ["rollout.prompts_per_step=4", "evaluation.prompts=4", "evaluation.samples_per_prompt=1"]
    command = [sys.executable, "-m", "engine.main", *overrides_of(approach, tuning, tmp_path), *small]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    exported = subprocess.run(
        [sys.executable, "-m", "engine.export", tmp_path / "cell", "--merge"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert exported.returncode == 0 and "it says the same" in exported.stdout, exported.stderr
