"""A step done again from its rollouts is the step that the run did, bit for bit; and what is not, is told."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import Finished, run_main
from safetensors.numpy import load_file, save_file

from engine.replay import run

SMALL = (
    "rollout.engine=hf",
    "evaluation.prompts=0",
    "run.steps=4",
    "run.save_every_steps=2",
    "run.keep_rollouts_every_steps=1",
    "run.tensorboard=false",
    "rollout.prompts_per_step=4",
    "rollout.responses_per_prompt=4",
    "train.schedule=constant",
)
PPO = (
    "algo=ppo",
    "train.updates_per_step=2",
    "algo.kl_coef=0.05",
    "algo.kl_target=0.01",
    "algo.kl_horizon=100",
    "algo.reference_refresh.every_steps=3",
)
"""Everything that a step leaves to the next: policy, critic, a reference that moves, a coefficient that is adapted."""
LINE = re.compile(r"(\w[\w/]*) +(\S+) +(\S+) +(\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the command said."""

    exit_code: int
    output: str
    mistake: str

    @property
    def last_line(self) -> str:
        return self.output.splitlines()[-1].rstrip()

    @property
    def table(self) -> dict[str, tuple[str, ...]]:
        """By metric: recorded, replayed, difference."""
        lines = self.output.partition("─\n")[2].splitlines()[:-1]
        found = [LINE.fullmatch(line.strip()) for line in lines]
        return {line[1]: line.groups()[1:] for line in found if line}

    @property
    def differing(self) -> set[str]:
        return {name for name, (_, _, difference) in self.table.items() if difference != "0"}


def replay(capsys: pytest.CaptureFixture[str], folder: Path, step: int, *settings: str) -> Replay:
    capsys.readouterr()
    exit_code = run([str(folder / f"rollouts/step_{step:06d}.jsonl"), *settings])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return Replay(exit_code=exit_code, output=said.out, mistake=said.err)


def stamps(folder: Path) -> dict[str, int]:
    """When each file was written, but for a replay's own."""
    files = (path for path in folder.rglob("*") if path.is_file() and "replay" not in path.parts)
    return {str(path): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def kept(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    done = run_main(*SMALL, f"cluster.address={cluster}", folder=tmp_path_factory.mktemp("runs"), name="kept")
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def copied(kept: Finished, tmp_path: Path) -> Path:
    """The run's folder at another place, to be spoilt."""
    shutil.copytree(kept.folder, tmp_path / "copied", ignore=shutil.ignore_patterns("export", "logs", "replay"))
    return tmp_path / "copied"


def test_a_step_done_again_is_the_step_bit_for_bit_and_nothing_but_logs_is_written(
    kept: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    before, third, fourth = stamps(kept.folder), *kept.steps[2:]
    told = replay(capsys, kept.folder, 4)
    assert (told.exit_code, told.last_line) == (0, "the replay is the step, bit for bit"), told.output
    assert "from the checkpoint of step 2\n" in told.output
    assert [line for line in told.output.splitlines() if line.endswith("again")] == ["step 3 again", "step 4 again"]
    assert told.differing == set()
    weights = fourth["weights_checksum"][:12]
    assert told.table["weights_checksum"][:2] == (weights, weights)
    assert fourth["weights_checksum"] != third["weights_checksum"], "the step did change the weights"
    for name in ("loss", "policy_loss", "kl", "entropy", "gradient_norm", "clip_high", "ratio_mean", "skipped_updates"):
        assert told.table[name][:2] == (f"{fourth[name]:.6g}", f"{fourth[name]:.6g}")
    assert stamps(kept.folder) == before
    assert {path.name for path in (kept.folder / "replay").iterdir()} == {"logs"}


def test_another_algorithm_learns_something_else_from_the_same_rollouts(
    kept: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    told, third = replay(capsys, kept.folder, 3, "algo=gspo", "train.updates_per_step=2"), kept.steps[2]
    assert told.exit_code == 0
    assert told.last_line.endswith("replayed: under algo=gspo train.updates_per_step=2")
    assert {"weights_checksum", "policy_loss", "ratio_mean"} <= told.differing
    assert told.table["weights_checksum"][0] == third["weights_checksum"][:12]
    # What was sampled, and what the policy says of it before it learns, is as it was.
    assert not told.differing & {"advantage_std", "shaped_reward", "responses", "logprob_gap_max"}


def test_rollouts_with_another_logprob_are_another_step(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So nothing of what is compared is read from the record."""
    tensors = load_file(path := copied / "rollouts/step_000003.safetensors")
    tensors["logprobs"][0] -= 0.5
    save_file(tensors, path)
    told = replay(capsys, copied, 3)
    assert told.exit_code == 1
    assert told.last_line.startswith("the replay differs from the step in ")
    assert {"weights_checksum", "logprob_gap_max"} <= told.differing


# ----------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("step", "settings", "told"),
    [
        (4, (), "the checkpoint of step 2 is the newest before it, and the rollouts of step 3 were not kept"),
        (4, (), "run.keep_rollouts_every_steps=1"),
        (9, (), "rollouts/step_000009.jsonl is not there"),
        (2, ("algo=gpso",), "Did you mean algo=gspo?"),
        (2, ("algo=sft",), "SFT learns from a data set"),
        (2, ("algo=remax",), "ReMax compares with a response without chance, and the run asked for none"),
        (2, ("rollout.temperature=0.5",), "rollout.temperature is not what a step learns by"),
        (2, ("train.zero_stage=3",), "train.zero_stage is how the checkpoint was cut into files"),
        (2, ("train.updates_per_step=3",), "cannot be split into train.updates_per_step"),
        (2, ("model.path=nowhere",), "model.path is nowhere: no such folder"),
    ],
)
def test_a_mistake_ends_before_ray_starts_with_what_to_do(
    step: int, settings: tuple[str, ...], told: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "rollouts/step_000003.jsonl").unlink()
    said = replay(capsys, copied, step, *settings)
    assert said.exit_code == 2 and told in said.mistake
    assert said.output == ""


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("metrics.jsonl", "is not the rollouts of a step"),
        ("rollouts", "is not the rollouts of a step"),
        ("step_000004.jsonl", "lies in no run's folder"),
        ("alone/rollouts/step_000004.jsonl", "holds no config.yaml"),
        ("rollouts/step_000004.jsonl", "are not of the same responses"),
    ],
)
def test_a_path_that_is_no_dump_is_told(path: str, told: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (copied / "rollouts/step_000004.jsonl").read_text().splitlines(keepends=True)
    (copied / "alone/rollouts").mkdir(parents=True)
    for place in (copied, copied / "alone/rollouts", copied / "rollouts"):
        (place / "step_000004.jsonl").write_text("".join(lines[1:]))
    assert run([str(copied / path)]) == 2
    said = capsys.readouterr()
    assert told in said.err and "Traceback" not in said.err and said.out == ""


# ----------------------------------------------------------------------------- whatever a run learns by


@pytest.mark.slow
def test_what_holds_for_the_last_step_alone_leaves_the_steps_before_as_they_were(
    kept: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    """A critic's learning rate, in a run without a critic, takes other trainers and changes nothing."""
    told = replay(capsys, kept.folder, 4, "critic.learning_rate=0.5")
    assert told.exit_code == 0 and told.output.count("starting Ray") == 2
    assert told.last_line.endswith("under critic.learning_rate=0.5") and told.differing == set()
    other = replay(capsys, kept.folder, 4, "train.learning_rate=0.5")
    assert other.differing >= {"learning_rate", "weights_checksum"} and "gradient_norm" not in other.differing
    assert replay(capsys, kept.folder, 4, "train.weight_decay=10").differing == {"weights_checksum"}


@pytest.mark.slow
def test_before_the_first_checkpoint_a_step_is_done_again_from_the_runs_beginning(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "checkpoints")
    told = replay(capsys, copied, 2)
    assert "from the beginning of the run" in told.output
    assert (told.exit_code, told.last_line) == (0, "the replay is the step, bit for bit"), told.output


def _done_again(cluster: str, folder: Path, capsys: pytest.CaptureFixture[str], *settings: str) -> Finished:
    """A run whose fourth step is done again, from the second on."""
    done = run_main(*SMALL, *settings, f"cluster.address={cluster}", folder=folder, name="kept")
    assert done.exit_code == 0, done.output
    told = replay(capsys, done.folder, 4)
    assert (told.exit_code, told.last_line) == (0, "the replay is the step, bit for bit"), told.output
    assert len({step["weights_checksum"] for step in done.steps}) == 4
    return done


@pytest.mark.slow
def test_a_critic_a_reference_that_moves_and_a_coefficient_that_adapts_are_done_again(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = _done_again(cluster, tmp_path, capsys, *PPO)
    assert len({step["kl_coef"] for step in done.steps}) == len({step["critic/loss"] for step in done.steps}) == 4
    assert abs(done.steps[3]["reward_kl"]) < 1e-6 < abs(done.steps[2]["reward_kl"]), "the reference did move"
    told = replay(capsys, done.folder, 4, "algo=grpo")
    assert told.exit_code == 0 and "weights_checksum" in told.differing and "critic/loss" not in told.table


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("algo=remax",),
        ("tuning=lora", "train.updates_per_step=2", "train.epochs_per_step=2"),
        ("train.ranks=2", "algo=reinforce_pp"),
        ("rollout.engine=vllm", "rollout.max_staleness=2", "algo.kl_coef=0"),
        ("algo=dapo", "algo.dynamic_sampling.surplus=carry", "algo.dynamic_sampling.draw_ahead=2"),
    ],
    ids=["greedy", "adapter", "two-ranks", "stale", "carried"],
)
def test_whatever_a_run_learns_by_is_done_again(
    settings: tuple[str, ...], cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = _done_again(cluster, tmp_path, capsys, *settings)
    if "rollout.max_staleness=2" in settings:
        assert done.steps[3]["staleness/max"] > 0


@pytest.mark.slow
def test_a_run_that_stopped_at_gradients_that_are_not_finite_shows_them_again(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm = tmp_path / "broken.yaml"
    algorithm.write_text("{_target_: tests.faults.broken_loss.BrokenLoss, once: 2, from_then_on: 4}\n")
    settings = (*SMALL, f"algo={algorithm}", "checks.max_skipped_steps=1", "run.steps=10", f"cluster.address={cluster}")
    done = run_main(*settings, folder=tmp_path, name="broken")
    assert done.exit_code == 1 and len(done.steps) == 4, done.output
    skipped = replay(capsys, done.folder, 4)
    assert (skipped.exit_code, skipped.last_line) == (0, "the replay is the step, bit for bit"), skipped.output
    assert skipped.table["skipped_updates"][:2] == ("1", "1")
    assert skipped.table["loss"][:2] == ("nan", "nan") and json.dumps(done.steps[3]["loss"]) == "NaN"
    last = replay(capsys, done.folder, 5)
    assert last.exit_code == 0
    assert last.last_line == "metrics.jsonl has no step 5, in which the run stopped: nothing to compare with"
    assert last.table["skipped_updates"] == ("-", "1", "-")
    assert last.table["weights_checksum"][1] == done.steps[3]["weights_checksum"][:12]
