"""A tuned model in the trainers: ranks and ZeRO stages agree, checkpoints hold what is learned, and what is published
is what was learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_training import distance, same_bits
from safetensors.torch import load_file
from tiny import ALL, ODD, toy_groups, toy_rows
from trainers import (
    WEIGHTS,
    Step,
    TrainerProcesses,
    _gathered,
    critic_step,
    grpo_calls,
    policy_step,
    run,
    step_of,
    trainer_setup,
)
from transformers import AutoModelForCausalLM

from engine.algorithms.grpo import GRPO
from engine.algorithms.ppo import PPO
from workers.config import Device, LoraInit, Quantization, TuningConfig, TuningMethod
from workers.train_worker import RankInfo, TrainerSetup

slow = pytest.mark.slow
LORA = TuningConfig(method=TuningMethod.LORA, rank=4)
TUNINGS = {
    "lora": LORA,
    "qlora": replace(LORA, quantization=Quantization.NF4),
    "oft": TuningConfig(method=TuningMethod.OFT, block_size=16),
    "qoft": TuningConfig(method=TuningMethod.OFT, block_size=16, quantization=Quantization.NF4),
    "freeze": TuningConfig(method=TuningMethod.FREEZE, layers=1),
    "pissa": replace(LORA, init=LoraInit.PISSA),
    "dora": replace(LORA, dora=True),
}
LESSONS = tuple((toy_rows(draws),) for draws in ((0, 1), (2, 3)))


def setup_of(folder: str, name: str, **train: Any) -> TrainerSetup:
    settings = {"tokens_per_micro_batch": ODD, "weight_decay": 0.0, "learning_rate": 1e-2}
    return replace(trainer_setup(folder, **(settings | train)), tuning=TUNINGS[name])


def merged(rank: RankInfo, setup: TrainerSetup, steps: list[Step]) -> dict[str, torch.Tensor]:
    """Runs in a trainer process: the whole weights of a policy after these steps."""
    from workers.policy_worker import PolicyWorker

    worker = PolicyWorker(setup, rank)
    for step in steps:
        policy_step(worker, step)
    return _gathered(worker)


def merged_critic(rank: RankInfo, setup: TrainerSetup, steps: list[Step]) -> dict[str, torch.Tensor]:
    """The same of a critic."""
    from workers.critic_worker import CriticWorker

    worker = CriticWorker(setup, replace(rank, role="critic"))
    for step in steps:
        critic_step(worker, step)
    return _gathered(worker)


def steps_of(ranks: int) -> list[Step]:
    return [step_of(lesson, GRPO(kl_coef=0.04), ranks=ranks) for lesson in LESSONS]


# ----------------------------------------------------------------------------- ranks and stages

PLACES = [("lora", 1, 2), ("lora", 2, 3), ("qlora", 2, 1), ("freeze", 2, 3), ("oft", 1, 3)]
MORE = [
    pytest.param(name, ranks, stage, marks=() if (name, ranks, stage) in PLACES else slow)
    for name in TUNINGS
    for ranks in (1, 2)
    for stage in (0, 1, 2, 3)
    if (ranks, stage) != (1, 0) and not (stage == 3 and name in ("qlora", "qoft", "pissa"))
]


@pytest.fixture(scope="module")
def alone(processes: dict[int, TrainerProcesses], folder: str):
    """What one rank without ZeRO makes of them, all rows at once."""
    done: dict[str, dict[str, torch.Tensor]] = {}

    def alone(name: str) -> dict[str, torch.Tensor]:
        if name not in done:
            setup = setup_of(folder, name, zero_stage=0, tokens_per_micro_batch=ALL)
            (done[name],) = processes[1](merged, setup, steps_of(1))
        return done[name]

    return alone


@pytest.mark.parametrize(("name", "ranks", "stage"), MORE)
def test_ranks_stages_and_micro_batches_do_not_change_what_is_learned(
    processes: dict[int, TrainerProcesses], folder: str, alone, name: str, ranks: int, stage: int
) -> None:
    answers = processes[ranks](merged, setup_of(folder, name, zero_stage=stage), steps_of(ranks))
    start = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
    assert distance(answers[0], alone(name)) < 2e-4
    assert distance(answers[0], start) > 5e-3
    assert all(same_bits(answers[0], other) for other in answers[1:])


@pytest.mark.parametrize(("name", "ranks", "stage"), [("qoft", 1, 1), ("lora", 2, 3), ("freeze", 1, 3)])
def test_a_critic_is_tuned_the_same_way_and_learns_its_head(
    processes: dict[int, TrainerProcesses], folder: str, name: str, ranks: int, stage: int
) -> None:
    steps = [step_of(lesson, PPO(), ranks=ranks) for lesson in LESSONS]
    one = processes[ranks](merged_critic, setup_of(folder, name, zero_stage=stage), steps)[0]
    start = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert one["score.weight"].abs().min() > 0
    untouched = {name for name in start if name in one and torch.equal(start[name], one[name])}
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"} <= untouched


# ----------------------------------------------------------------------------- checkpoints

RESUMED = [
    *(("qlora", 1, 1), ("freeze", 1, 2), ("pissa", 1, 1), ("lora", 2, 3)),
    *(pytest.param(*place, marks=slow) for place in (("lora", 1, 1), ("oft", 1, 0), ("dora", 1, 2), ("qoft", 2, 1))),
]


@pytest.mark.parametrize(("name", "ranks", "stage"), RESUMED)
def test_a_resumed_trainer_goes_on_bit_for_bit(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path, name: str, ranks: int, stage: int
) -> None:
    setup = setup_of(folder, name, zero_stage=stage)
    calls = grpo_calls(LESSONS, ranks=ranks)
    straight = run(processes[ranks], setup, calls, WEIGHTS)
    run(processes[ranks], setup, [of_rank[:1] for of_rank in calls], ("save", (tmp_path,)))
    # Another seed draws another adapter at first: nothing of it may be left.
    other = replace(setup, seed=5)
    resumed = run(processes[ranks], other, [[("load", (tmp_path,)), *of_rank[1:]] for of_rank in calls], WEIGHTS)
    assert same_bits(resumed[0][2], straight[0][2])
    assert [answer[1] for answer in resumed] == [answer[1] for answer in straight]


@pytest.mark.parametrize(("name", "stage"), [("qlora", 1), ("freeze", 1), ("lora", 3)])
def test_a_checkpoint_holds_what_is_learned_and_nothing_of_the_frozen_base(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path, name: str, stage: int
) -> None:
    run(processes[1], setup_of(folder, name, zero_stage=stage), [[]], ("save", (tmp_path,)))
    marks = {"freeze": ("layers.1.",)}.get(name, (".lora_",))
    for file in tmp_path.rglob("*model_states.pt"):
        state = torch.load(file, weights_only=False)["module"]
        assert state and all(any(mark in key for mark in marks) for key in state)
    held = sum(file.stat().st_size for file in tmp_path.rglob("*.pt"))
    whole = 4 * sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    # Two moments and a copy in float32, beside the numbers themselves: 16 bytes a number that is learned.
    assert name == "freeze" or held < 16 * 0.3 * whole / 4 + 100_000


# ----------------------------------------------------------------------------- published and exported


def published(rank: RankInfo, setup: TrainerSetup, steps: list[Step], folder: Path) -> list[dict[str, torch.Tensor]]:
    """Runs in a trainer process: what is laid out before and after each of these steps; then it is exported."""
    from workers.policy_worker import PolicyWorker
    from workers.weight_sync import read_weights

    worker, sent = PolicyWorker(setup, rank), []
    for version, step in enumerate([None, *steps]):
        if step:
            policy_step(worker, step)
        manifest = worker.publish(version)
        if manifest:
            sent.append({name: tensor.clone() for name, tensor in read_weights(manifest)})
    worker.export(folder)
    return sent


@pytest.mark.parametrize(("name", "ranks", "stage"), [("lora", 2, 3), ("qlora", 1, 1), ("oft", 1, 1)])
def test_an_adapter_travels_alone_where_engines_serve_it_and_the_export_is_what_travelled(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path, name: str, ranks: int, stage: int
) -> None:
    setup = setup_of(folder, name, zero_stage=stage)
    first, *others = processes[ranks](published, setup, steps_of(ranks), tmp_path)[0]
    plain = {name for name, _ in AutoModelForCausalLM.from_pretrained(folder).named_parameters()}
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    if name == "oft":
        assert all(sent.keys() == plain for sent in (first, *others))
    else:
        assert first.keys() - adapter.keys() == (plain if name == "qlora" else set())
        assert all(sent.keys() == adapter.keys() for sent in others)
        assert same_bits(dict(sorted(others[-1].items())), dict(sorted(adapter.items())))


def travelled(rank: RankInfo, setup: TrainerSetup, steps: list[Step], folder: Path) -> list[tuple[set[str], int]]:
    """Runs in a trainer process: the names that were written for each version, and how many bytes. The last version as
    a late reader finds it must be the whole model."""
    from workers.policy_worker import PolicyWorker
    from workers.weight_sync import read_weights

    worker, sent, whole = PolicyWorker(setup, rank), [], {}
    for version, step in enumerate([None, *steps]):
        if step:
            policy_step(worker, step)
        if manifest := worker.publish(version):
            written = {entry.name for entry in manifest.entries if entry.since == version}
            sent.append((written, manifest.num_bytes))
            whole = dict(read_weights(manifest))
    everything = _gathered(worker)
    assert rank.rank != 0 or same_bits(whole, everything)
    return sent


@pytest.mark.parametrize(("name", "ranks", "stage"), [("freeze", 1, 1), ("freeze", 2, 3), ("oft", 1, 1)])
def test_weights_that_are_not_learned_travel_once(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path, name: str, ranks: int, stage: int
) -> None:
    setup = setup_of(folder, name, zero_stage=stage)
    (first, _), *others = processes[ranks](travelled, setup, steps_of(ranks), tmp_path)[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    plain = dict(model.named_parameters())
    assert first == set(plain)
    last = f"layers.{model.config.num_hidden_layers - 1}."
    expected = {key for key in plain if (last in key if name == "freeze" else "_proj.weight" in key)}
    assert len(others) == 2
    for written, num_bytes in others:
        assert written == expected and num_bytes == sum(plain[key].nbytes for key in expected)


# ----------------------------------------------------------------------------- its own reference


def own_reference(rank: RankInfo, setup: TrainerSetup, step: Step) -> tuple[np.ndarray, np.ndarray, float]:
    """Runs in a trainer process: what the policy takes for its reference after it has learned, the frozen copy of what
    it started from, and how far it has come."""
    from workers.frozen_worker import FrozenWorker
    from workers.policy_worker import PolicyWorker

    share, algorithm = step.batch.shares[rank.rank], step.algorithm
    frozen = FrozenWorker(setup.model, Device.CPU, setup.seed, setup.train.tokens_per_micro_batch)
    expected = frozen.reference_outputs(share, step.temperature, *step.groups)["reference_logprobs_BT"]
    worker, divergence = PolicyWorker(setup, rank), 0.0
    for _ in range(2):
        divergence = worker.look(share, algorithm, step.temperature, {}, {}, *step.groups)
        worker.credit(np.array([row.reward for row in step.rows(rank.rank)]), algorithm, algorithm.initial_state())
        report = worker.update(algorithm, algorithm.initial_state())
    found = worker._looked.outputs.reference_logprobs_BT[:-1].numpy()
    return found, expected, report.contributions["kl"] + 0.0 * float(np.sum(divergence))


@pytest.mark.parametrize(("name", "ranks", "stage"), [("oft", 1, 1), ("lora", 2, 3)])
def test_the_reference_is_the_model_without_its_adapter_however_much_that_has_learned(
    processes: dict[int, TrainerProcesses], folder: str, name: str, ranks: int, stage: int
) -> None:
    step = step_of(LESSONS[0], GRPO(kl_coef=0.04), ranks=ranks, groups=toy_groups())
    for found, expected, kl in processes[ranks](own_reference, setup_of(folder, name, zero_stage=stage), step):
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)
        assert kl > 1e-6
