"""A trainer goes on upon another number of ranks than saved it: no number is lost, and it is as if never stopped."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_training import distance, same_bits, summed
from tiny import ODD, toy_rows
from torch import Tensor
from trainers import Call, TrainerProcesses, _done, critic_step, policy_step, step_of, trainer_setup

from engine.algorithms.grpo import GRPO
from engine.algorithms.ppo import PPO
from workers.config import LoraInit, Precision, Schedule, TuningConfig, TuningMethod
from workers.resharding import ReshardingError, SavedShards
from workers.train_worker import RankInfo, TrainerSetup

slow = pytest.mark.slow
LESSONS = tuple((toy_rows(draws),) for draws in ((0, 1), (2, 3), (4, 5), (0, 1)))
"""Of four updates; the checkpoint lies between the second and the third."""
LORA = TuningConfig(method=TuningMethod.LORA, rank=4)
TUNINGS = {
    "full": TuningConfig(),
    "lora": LORA,
    "freeze": TuningConfig(method=TuningMethod.FREEZE, layers=1),
    "pissa": replace(LORA, init=LoraInit.PISSA),
}
STATE: Call = ("state", ())
Train = Callable[[RankInfo, TrainerSetup, list[Call]], list[Any]]


def setup_of(folder: str, *, stage: int, tuning: str = "full", **more: Any) -> TrainerSetup:
    schedule = {"warmup_updates": 1, "schedule": Schedule.LINEAR, "total_updates": 4}
    setup = trainer_setup(folder, zero_stage=stage, tokens_per_micro_batch=ODD, **(schedule | more))
    return replace(setup, tuning=TUNINGS[tuning])


# ----------------------------------------------------------------------------- in a trainer process


def train(rank: RankInfo, setup: TrainerSetup, calls: list[Call]) -> list[Any]:
    from workers.policy_worker import PolicyWorker

    return _done(PolicyWorker(setup, rank), calls, step=policy_step, state=state_of, groups=groups_of)


def train_on_a_bad_disk(rank: RankInfo, setup: TrainerSetup, calls: list[Call]) -> list[Any]:
    """Is told what a save raises, in place of raising it."""
    from workers.policy_worker import PolicyWorker

    def save(worker: PolicyWorker, folder: Path) -> str:
        try:
            return f"{len(worker.save(folder))} files"
        except OSError as error:
            return type(error).__name__

    return _done(PolicyWorker(setup, rank), calls, step=policy_step, state=state_of, save=save)


def train_critic(rank: RankInfo, setup: TrainerSetup, calls: list[Call]) -> list[Any]:
    from workers.critic_worker import CriticWorker

    return _done(CriticWorker(setup, replace(rank, role="critic")), calls, step=critic_step, state=state_of)


def train_in_small_groups(rank: RankInfo, setup: TrainerSetup, calls: list[Call]) -> list[Any]:
    """With a setting of DeepSpeed's as if the model were a thousand times as large."""
    from workers import train_worker
    from workers.optimizer import deepspeed_settings

    def settings(*args: Any, **more: Any) -> dict[str, Any]:
        usual = deepspeed_settings(*args, **more)
        return usual | {"zero_optimization": usual["zero_optimization"] | {"sub_group_size": 3000}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_worker, "deepspeed_settings", settings)
        return train(rank, setup, calls)


def refusal(rank: RankInfo, setup: TrainerSetup, folder: Path) -> tuple[str, bool]:
    """What a trainer says of a folder that it cannot load, and whether it is then as it was."""
    from workers.policy_worker import PolicyWorker

    worker = PolicyWorker(setup, rank)
    before = dict(_weights(worker))
    with pytest.raises(ReshardingError) as caught:
        worker.load(folder)
    return str(caught.value), same_bits(before, dict(_weights(worker)))


def state_of(worker: Any) -> dict[str, Tensor]:
    """All that decides what a trainer does next, whole, by name, as DeepSpeed's own tools put it together."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer = worker._engine.optimizer
    states = getattr(optimizer, "optimizer", optimizer).state
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        # After a load DeepSpeed would tie moments to their parameters at the next step only.
        optimizer._lazy_init_hp_params_optimizer_state()
    found = dict(_weights(worker))
    for name, parameter in worker._engine.module.named_parameters():
        if parameter.requires_grad and worker._train.zero_stage == 0:
            found |= {f"{key} of {name}": states[parameter][key].clone() for key in ("exp_avg", "exp_avg_sq")}
        elif parameter.requires_grad:
            found[f"master of {name}"] = safe_get_full_fp32_param(parameter).clone()
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"{key} of {name}"] = safe_get_full_optimizer_state(parameter, key).clone()
    found["steps"] = torch.stack([state["step"] for state in states.values()]).unique()
    return found


def _weights(worker: Any) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in worker._whole_weights():
        yield f"weight {name}", tensor.detach().clone()


def groups_of(worker: Any) -> int:
    """The pieces in which DeepSpeed keeps a rank's part of the optimizer."""
    return len(worker._engine.optimizer.state_dict()["fp32_flat_groups"])


# ----------------------------------------------------------------------------- going on elsewhere


def steps_of(train: Train, *, ranks: int) -> list[list[Call]]:
    """Of each rank."""
    algorithm = PPO() if train is train_critic else GRPO(kl_coef=0.04)
    return [[("step", (step_of(lesson, algorithm, ranks=ranks),)) for lesson in LESSONS]] * ranks


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Four updates that were never stopped, and what was saved after two of them: once for each kind of trainer."""

    processes: dict[int, TrainerProcesses]
    folder: Path
    done: dict[Path, list[list[Any]]] = field(default_factory=dict)

    def straight(self, train: Train, setup: TrainerSetup, name: str, *, ranks: int) -> list[list[Any]]:
        """Each rank's two reports, its state, None, two reports, its state."""
        path = self.folder / f"{name} {ranks}"
        if path not in self.done:
            calls = [
                [*steps[:2], STATE, ("save", (path,)), *steps[2:], STATE] for steps in steps_of(train, ranks=ranks)
            ]
            self.done[path] = self.processes[ranks](train, setup, by_rank=calls)
        return self.done[path]

    def resumed(self, train: Train, setup: TrainerSetup, name: str, *, saved: int, ranks: int) -> list[list[Any]]:
        """Each rank's None, its state, two reports, its state."""
        load: Call = ("load", (self.folder / f"{name} {saved}",))
        calls = [[load, STATE, *steps[2:], STATE] for steps in steps_of(train, ranks=ranks)]
        return self.processes[ranks](train, setup, by_rank=calls)

    def check(self, train: Train, setup: TrainerSetup, name: str, *, saved: int, ranks: int) -> None:
        stayed, never_moved = (self.straight(train, setup, name, ranks=number) for number in (saved, ranks))
        # Another seed draws another adapter at first: nothing of it may be left.
        moved = self.resumed(train, replace(setup, seed=5), name, saved=saved, ranks=ranks)
        at_save = stayed[0][2]
        assert at_save["steps"].tolist() == [2.0]
        assert all(tensor.any() for name, tensor in at_save.items() if name.startswith("exp_avg")), "worth loading"
        assert all(same_bits(answers[1], at_save) for answers in moved), "every bit, as every rank sees it"
        assert distance(stayed[0][6], at_save) > 1e-3
        for straight in (stayed, never_moved):
            # Measured: 3e-7. Only the order in which gradients are summed is another.
            assert distance(moved[0][4], straight[0][6]) < 1e-6
            for after, before in ((2, 4), (3, 5)):
                reports, expected = [each[after] for each in moved], [each[before] for each in straight]
                assert summed(reports, "learning_rate") == summed(expected, "learning_rate")
                assert summed(reports, "loss") == pytest.approx(summed(expected, "loss"), rel=1e-5, abs=1e-6)
                assert summed(reports, "gradient_norm") == pytest.approx(summed(expected, "gradient_norm"), rel=1e-5)


@pytest.fixture(scope="module")
def runs(processes: dict[int, TrainerProcesses], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(processes=processes, folder=tmp_path_factory.mktemp("checkpoints"))


PLACES = [
    *((saved, ranks, stage, "full") for saved, ranks in ((1, 2), (2, 1)) for stage in (0, 1, 2, 3)),
    *((1, 2, 3, "lora"), (2, 1, 1, "lora")),
    *(
        pytest.param(*place, marks=slow)
        for place in (
            *((1, 2, 0, "lora"), (1, 2, 1, "lora"), (1, 2, 2, "lora"), (2, 1, 2, "lora"), (2, 1, 3, "lora")),
            *((2, 1, 2, "pissa"), (1, 2, 1, "pissa"), (2, 1, 3, "freeze"), (1, 2, 2, "freeze")),
        )
    ),
]


@pytest.mark.parametrize(("saved", "ranks", "stage", "tuning"), PLACES)
def test_a_policy_goes_on_upon_other_ranks_with_every_bit_and_to_rounding_as_if_never_stopped(
    runs: Runs, folder: str, saved: int, ranks: int, stage: int, tuning: str
) -> None:
    runs.check(train, setup_of(folder, stage=stage, tuning=tuning), f"{tuning} {stage}", saved=saved, ranks=ranks)


@pytest.mark.parametrize(("saved", "ranks", "stage"), [(2, 1, 1), pytest.param(1, 2, 3, marks=slow)])
def test_so_does_a_critic(runs: Runs, folder: str, saved: int, ranks: int, stage: int) -> None:
    runs.check(train_critic, setup_of(folder, stage=stage), f"critic {stage}", saved=saved, ranks=ranks)


@pytest.mark.parametrize(("saved", "ranks"), [(1, 2), (2, 1)])
def test_so_does_one_whose_optimizer_is_kept_in_other_pieces_there(
    runs: Runs, processes: dict[int, TrainerProcesses], folder: str, saved: int, ranks: int
) -> None:
    """As a large model's under ZeRO 3: the pieces are of a size in numbers, whatever the number of ranks."""
    setup = setup_of(folder, stage=3)
    pieces = [processes[n](train_in_small_groups, setup, by_rank=[[("groups", ())]] * n)[0][0] for n in (saved, ranks)]
    assert min(pieces) > 1 and pieces[0] != pieces[1]
    runs.check(train_in_small_groups, setup, "pieces", saved=saved, ranks=ranks)


@pytest.mark.parametrize(
    ("saved", "ranks", "stage"),
    [(2, 1, 1), (1, 2, 3), *(pytest.param(*place, marks=slow) for place in ((1, 2, 1), (1, 2, 2), (2, 1, 3)))],
)
def test_in_bfloat16_the_float32_weights_behind_it_are_loaded_bit_for_bit(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path, saved: int, ranks: int, stage: int
) -> None:
    setup = setup_of(folder, stage=stage, precision=Precision.BFLOAT16)
    first = [[*steps[:2], STATE, ("save", (tmp_path,))] for steps in steps_of(train, ranks=saved)]
    at_save = processes[saved](train, setup, by_rank=first)[0][2]
    masters = [tensor for name, tensor in at_save.items() if name.startswith("master")]
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in masters), "they say more"
    calls = [[("load", (tmp_path,)), STATE, *steps[2:], STATE] for steps in steps_of(train, ranks=ranks)]
    after = processes[ranks](train, setup, by_rank=calls)
    assert all(same_bits(answers[1], at_save) for answers in after)
    assert all(same_bits(answers[4], after[0][4]) for answers in after)
    assert after[0][4]["steps"].tolist() == [4.0]


@pytest.mark.parametrize("stage", [pytest.param(1, marks=slow), pytest.param(2, marks=slow), 3])
def test_a_number_of_ranks_that_divides_nothing_evenly_loses_no_bit_there_and_back(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path, stage: int
) -> None:
    setup, three = setup_of(folder, stage=stage), TrainerProcesses(3, tmp_path)
    first = [[*steps[:2], STATE, ("save", (tmp_path / "2",))] for steps in steps_of(train, ranks=2)]
    at_save = processes[2](train, setup, by_rank=first)[0][2]
    assert any(tensor.numel() % 3 for name, tensor in at_save.items() if name.startswith("master"))
    try:
        there: list[Call] = [("load", (tmp_path / "2",)), STATE, ("save", (tmp_path / "3",))]
        on_three = three(train, setup, by_rank=[there] * 3)
    finally:
        three.close()
    back = processes[2](train, setup, by_rank=[[("load", (tmp_path / "3",)), STATE]] * 2)
    assert all(same_bits(answers[1], at_save) for answers in (*on_three, *back))


def test_nothing_is_left_of_what_was_learned_before_the_load(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path
) -> None:
    """Under ZeRO 3 a step leaves weights whole on every rank, which the load must not take for its own."""
    setup = setup_of(folder, stage=3)
    first = [[*steps[:2], ("save", (tmp_path,)), *steps[2:], STATE] for steps in steps_of(train, ranks=2)]
    end = processes[2](train, setup, by_rank=first)[0][-1]
    calls = [[steps[3], ("load", (tmp_path,)), *steps[2:], STATE] for steps in steps_of(train, ranks=1)]
    assert distance(processes[1](train, setup, by_rank=calls)[0][-1], end) < 1e-6


# ----------------------------------------------------------------------------- shards by hand

SIZES = st.lists(st.integers(1, 25), min_size=1, max_size=6)
RANKS = st.integers(1, 5)


def shards_by_hand(
    parameters: Sequence[Tensor], *, pieces: int, ranks: int, by_parameter: bool
) -> tuple[list[dict[str, Any]], list[dict[str, torch.Size]]]:
    """What each rank of an optimizer saves whose moments are twice and three times the weights; and the shapes.

    `pieces`: parameters of a group, where each is shared out.
    """
    named = [(f"w{number}", tensor) for number, tensor in enumerate(parameters)]
    groups = [named[at : at + pieces] for at in range(0, len(named), pieces)] if by_parameter else [named]
    parts: list[list[Tensor]] = []
    for group in groups:
        if by_parameter:
            cut = [_in_equal_parts(tensor, ranks, 1) for _, tensor in group]
            parts.append([torch.cat(of_rank) for of_rank in zip(*cut, strict=True)])
        else:
            parts.append(_in_equal_parts(torch.cat([tensor for _, tensor in group]), ranks, 2))
    shards = []
    for rank in range(ranks):
        own = [of_ranks[rank] for of_ranks in parts]
        state = {n: {"step": torch.tensor(7.0), "exp_avg": 2 * p, "exp_avg_sq": 3 * p} for n, p in enumerate(own)}
        optimizer = {"state": state, "param_groups": [{"lr": 0.1, "params": [*range(len(own))]}]}
        if by_parameter:
            shards.append({"fp32_flat_groups": own, "optimizer_state_dict": optimizer, "partition_count": ranks})
            continue
        numbers = sum(tensor.numel() for tensor in parameters)
        lean = [part[: max(0, numbers - rank * len(part))] for part in own]
        paddings = [len(part) - len(short) for part, short in zip(own, lean, strict=True)]
        shards.append(
            {
                "single_partition_of_fp32_groups": lean,
                "group_paddings": paddings,
                "base_optimizer_state": optimizer,
                "partition_count": [ranks],
            }
        )
    return shards, [{name: tensor.shape for name, tensor in group} for group in groups]


def _in_equal_parts(tensor: Tensor, ranks: int, alignment: int) -> list[Tensor]:
    width = math.ceil(tensor.numel() / (ranks * alignment)) * alignment
    return list(torch.nn.functional.pad(tensor, (0, ranks * width - tensor.numel())).split(width))


@given(sizes=SIZES, saved=RANKS, ranks=RANKS, pieces=st.tuples(RANKS, RANKS), by_parameter=st.booleans())
def test_any_number_of_ranks_gets_the_shards_that_it_would_have_saved(
    sizes: list[int], saved: int, ranks: int, pieces: tuple[int, int], by_parameter: bool
) -> None:
    ends = torch.arange(1.0, sum(sizes) + 1).split(sizes)
    shards, shapes = shards_by_hand(ends, pieces=pieces[0], ranks=saved, by_parameter=by_parameter)
    expected, now = shards_by_hand(ends, pieces=pieces[1], ranks=ranks, by_parameter=by_parameter)
    fresh, _ = shards_by_hand([0 * end for end in ends], pieces=pieces[1], ranks=ranks, by_parameter=by_parameter)
    for rank in range(ranks):
        dealt = SavedShards(shards=shards, shapes=shapes).of_rank(rank, ranks=ranks, fresh=fresh[rank], shapes=now)
        torch.testing.assert_close(dealt, _padded(expected[rank]), rtol=0, atol=0)
        states = dealt["optimizer_state_dict" if by_parameter else "base_optimizer_state"]["state"].values()
        assert len({state["step"].data_ptr() for state in states}) == len(states), "counted one by one"


def _padded(shard: dict[str, Any]) -> dict[str, Any]:
    """Master weights are saved without their padding, and may be loaded with it."""
    key = "single_partition_of_fp32_groups"
    if key not in shard:
        return shard
    pads = zip(shard[key], shard["group_paddings"], strict=True)
    return shard | {key: [torch.nn.functional.pad(part, (0, padding)) for part, padding in pads]}


# ----------------------------------------------------------------------------- what is written


def test_a_trainer_tells_the_hash_of_each_file_which_carries_no_checksums_of_its_own(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path
) -> None:
    calls = [*steps_of(train, ranks=1)[0][:1], ("save", (tmp_path,))]
    [[*_, written]] = processes[1](train, setup_of(folder, stage=1), by_rank=[calls])
    files = sorted((tmp_path / "policy").glob("*.pt"))
    assert len(files) == 2 and sorted(tmp_path / one.name for one in written) == files
    for file in files:
        [told] = [one for one in written if tmp_path / one.name == file]
        assert told.sha256 == hashlib.sha256(file.read_bytes()).hexdigest() and told.size == file.stat().st_size
        assert {entry.CRC for entry in ZipFile(file).infolist()} == {0}


def test_a_rank_whose_disk_fails_says_so_when_all_have_written_and_they_go_on_together(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path
) -> None:
    """They wait for each other before a save ends."""

    def run_of(place: Path) -> list[list[Any]]:
        steps = [[*own[:1], ("save", (place,)), *own[1:2], STATE] for own in steps_of(train, ranks=2)]
        return processes[2](train_on_a_bad_disk, setup_of(folder, stage=1), by_rank=steps)

    whole = run_of(tmp_path / "whole")
    [of_rank_1] = (tmp_path / "whole" / "policy").glob("*rank_1_*")
    (tmp_path / "bad" / "policy" / of_rank_1.name).mkdir(parents=True)
    bad = run_of(tmp_path / "bad")
    assert [answers[1] for answers in whole] == ["2 files", "1 files"]
    assert [answers[1] for answers in bad] == ["2 files", "IsADirectoryError"]
    assert all(same_bits(one[-1], other[-1]) for one, other in zip(whole, bad, strict=True))


# ----------------------------------------------------------------------------- what is refused


def test_what_cannot_be_dealt_anew_is_refused_with_its_reason_and_nothing_is_loaded(
    processes: dict[int, TrainerProcesses], folder: str, tmp_path: Path
) -> None:
    def saved(name: str, ranks: int, **more: Any) -> Path:
        setup = setup_of(folder, **more)
        processes[ranks](
            train, setup, by_rank=[[*steps_of(train, ranks=ranks)[0][:1], ("save", (tmp_path / name,))]] * ranks
        )
        return tmp_path / name

    def said(path: Path, *, ranks: int, **more: Any) -> str:
        reasons = processes[ranks](refusal, setup_of(folder, **more), path)
        assert all(untouched for _, untouched in reasons)
        return reasons[0][0]

    lora = saved("lora", 1, stage=1, tuning="lora")
    assert "another model; parameters that differ: ['model" in said(lora, ranks=2, stage=1, tuning="freeze")
    missing = saved("missing", 2, stage=1)
    (missing / "policy" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    assert "saved by 2 ranks and has shards of [0]" in said(missing, ranks=2, stage=1)
    stage_2 = saved("stage 2", 1, stage=2)
    (stage_2 / "policy" / "mp_rank_00_model_states.pt").rename(
        stage_2 / "policy" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    )
    assert "another ZeRO stage" in said(stage_2, ranks=2, stage=3)
    stage_3 = saved("stage 3", 1, stage=3)
    file = stage_3 / "policy" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save(torch.load(file, weights_only=False) | {"frozen_param_fragments": {"w": torch.ones(3)}}, file)
    assert "frozen weights in parts" in said(stage_3, ranks=2, stage=3)
