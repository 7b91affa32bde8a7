"""Two runs' folders compared: what differs is found where it is, and nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.checkpoint import CheckpointState
from engine.verify import Compared, main, verify
from workers.records import AlgorithmState

SETTINGS = {"train.learning_rate": "0.0001", "run.seed": "3"}


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A run of three steps, as it is left behind."""
    run = tmp_path / "one"
    (run / "rollouts").mkdir(parents=True)
    (run / "export").mkdir()
    rows: list[dict[str, Any]] = [{"step": 0, "held_out/sampled": 0.25}]
    for step in (1, 2, 3):
        own = {"step": step, "loss": 0.5 / step, "kl": float("nan"), "weights_checksum": f"w{step}"}
        rows.append({**own, "time/step_s": np.random.random(), "memory/policy/update_gib": np.random.random()})
        save_file({"token_ids": np.array([step, 7])}, run / "rollouts" / f"step_{step:06d}.safetensors")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file({"head": np.arange(4.0)}, run / "export" / "model.safetensors")
    folder = run / "checkpoints" / "step_000002"
    folder.mkdir(parents=True)
    change_state(run, state())
    return run


@pytest.fixture
def other(one: Path) -> Path:
    """The same again, at other times."""
    copied = one.with_name("other")
    shutil.copytree(one, copied)
    change_rows(copied, lambda row: row | {"time/step_s": 77.0, "tokens_per_s": 1.0} if "loss" in row else row)
    return copied


def state(*, next_draw: int = 8, data: str = "d", settings: dict[str, str] = SETTINGS) -> CheckpointState:
    return CheckpointState(
        step=2, next_draw=next_draw, lessons_taken=0, algorithm=AlgorithmState(kl_coef=0.0), metrics_bytes=1,
        weights_version=2, seed=3, config=settings, data_fingerprint=data,
    )  # fmt: skip


def change_state(run: Path, new: CheckpointState) -> None:
    (run / "checkpoints/step_000002/state.json").write_text(new.to_json())


def change_rows(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = run / "metrics.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parted(one: Path, other: Path, *, tolerance: float = 0.0) -> dict[str, Compared]:
    """The aspects that differ."""
    return {own.aspect: own for own in verify(one, other, tolerance=tolerance) if own.differences}


def test_a_run_done_again_elsewhere_is_the_same_run(one: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parted(one, other) == {}
    assert {own.aspect: own.compared for own in verify(one, other, tolerance=0.0)} == {
        "config": 2, "data": 1, "ledger": 1, "rollouts": 3, "weights": 4, "metrics": 2 + 3 * 3,
    }  # fmt: skip
    assert main([str(one), str(other)]) == 0
    assert "the runs are equal" in capsys.readouterr().out


def _settings(run: Path) -> None:
    change_state(run, state(settings=SETTINGS | {"train.learning_rate": "0.0002"}))


def _seed(run: Path) -> None:
    change_state(run, state(settings=SETTINGS | {"run.seed": "4"}))


def _data(run: Path) -> None:
    change_state(run, state(data="e"))


def _draws(run: Path) -> None:
    change_state(run, state(next_draw=9))


def _tokens(run: Path) -> None:
    save_file({"token_ids": np.array([2, 8])}, run / "rollouts/step_000002.safetensors")


def _served(run: Path) -> None:
    change_rows(run, lambda row: row | {"weights_checksum": "x"} if row["step"] == 2 else row)


def _exported(run: Path) -> None:
    save_file({"head": np.arange(4.0) + 1e-6}, run / "export/model.safetensors")


def _figure(run: Path) -> None:
    change_rows(run, lambda row: row | {"loss": row["loss"] * (1 + 1e-9)} if row["step"] >= 2 else row)


def _shorter(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))


@pytest.mark.parametrize(
    ("change", "aspect", "where"),
    [
        (_settings, "config", "train.learning_rate: 0.0001 and 0.0002"),
        (_seed, "config", "run.seed: 3 and 4"),
        (_data, "data", "the checkpoint of step 2: d and e"),
        (_draws, "ledger", "the checkpoint of step 2: 8 and 9"),
        (_tokens, "rollouts", "step 000002"),
        (_served, "weights", "step 2: w2 and x"),
        (_exported, "weights", "export/model.safetensors"),
        (_figure, "metrics", "step 2, loss: 0.25 and 0.25000000025"),
        (_shorter, "metrics", "the number of rows in metrics.jsonl: 4 and 3"),
    ],
)
def test_one_change_is_found_in_its_aspect_alone_and_where_it_first_shows(
    one: Path, other: Path, change: Callable[[Path], None], aspect: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(other)
    found = parted(one, other)
    assert list(found) == [aspect]
    assert str(found[aspect].differences[0]).startswith(where)
    assert main([str(one), str(other)]) == 1
    out = capsys.readouterr().out
    assert where in out and "the runs differ" in out


def test_metrics_may_lie_apart_as_far_as_is_allowed(one: Path, other: Path) -> None:
    _figure(other)
    assert parted(one, other, tolerance=1e-8) == {}
    assert list(parted(one, other, tolerance=1e-10)) == ["metrics"]


def test_what_only_one_run_kept_is_no_difference_but_a_missing_setting_is(one: Path, other: Path) -> None:
    (other / "rollouts/step_000003.safetensors").unlink()
    shutil.rmtree(other / "export")
    assert parted(one, other) == {}
    change_state(other, state(settings={"run.seed": "3"}))
    assert str(parted(one, other)["config"].differences[0]) == "train.learning_rate: 0.0001 and absent"


def test_a_folder_that_is_no_run_is_a_mistake(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(one), str(tmp_path)]) == 2
    assert f"{tmp_path} is no run's folder" in capsys.readouterr().err
