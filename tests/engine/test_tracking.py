"""A run's record: an alarm is told once, kept in the metrics, and stops the run where it is to."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from engine.alarms import PARTS, WINDOW, AlarmBegan
from engine.config import load_config
from engine.tracking import Tracker

STEPS = 3 * WINDOW


def a_run(folder: Path, *overrides: str) -> list[dict[str, float]]:
    """Responses grow with the reward; returns the rows of metrics.jsonl."""
    config = load_config(
        [f"run.folder={folder}", "run.name=r", f"run.steps={STEPS}", "run.tensorboard=false", *overrides]
    )
    with closing(Tracker(config)) as tracker:
        for step in range(STEPS):
            with tracker.step(step) as metrics:
                figures = {"reward/mean": 0.1 + 0.02 * step, "response_length/mean": 10.0 + 2 * step}
                metrics |= figures | {"tokens": 1.0, "skipped_updates": 0.0}
                new = tracker.alarms(metrics, responses=Path(f"r/rollouts/step_{step + 1:06d}.jsonl"))
            tracker.say_alarms(new)
    return [json.loads(line) for line in (folder / "r" / "metrics.jsonl").read_text().splitlines()]


def test_an_alarm_is_told_once_with_figures_and_where_to_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = a_run(tmp_path)
    [told] = [line for line in capsys.readouterr().out.splitlines() if "alarm" in line]
    began = next(row["step"] for row in rows if "alarms/length" in row)
    assert f"alarm length: after step {began:.0f} the reward went from 0.190 to" in told
    assert told.endswith(f"look at r/rollouts/step_{began:06.0f}.jsonl")
    assert [row["step"] for row in rows if "alarms/length" in row] == list(range(int(began), STEPS + 1))
    assert 2 * WINDOW <= began < STEPS


def test_an_alarm_can_stop_the_run_after_its_step_is_written(tmp_path: Path) -> None:
    with pytest.raises(AlarmBegan, match=r"checks.alarms is stop:\nalarm length: after step \d+"):
        a_run(tmp_path, "checks.alarms=stop")
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "alarms/length" in row] == [len(rows)]


def test_memory_that_rises_is_told_with_where_that_is_seen_and_what_is_to_be_mended(tmp_path: Path) -> None:
    config = load_config(
        [f"run.folder={tmp_path}", "run.name=r", "algo=sft", "data=arithmetic_demos", "checks.alarms=stop"]
    )
    with closing(Tracker(config)) as tracker, pytest.raises(AlarmBegan) as stopped:
        for step in range(2 * PARTS * WINDOW):
            with tracker.step(step) as metrics:
                metrics |= {"memory/policy/resident_gib": 2.0 + 0.01 * step, "tokens": 1.0, "skipped_updates": 0.0}
                new = tracker.alarms(metrics, responses=Path("r/rollouts/step_000001.jsonl"))
            tracker.say_alarms(new)
    assert str(stopped.value).splitlines() == [
        "an alarm began, and checks.alarms is stop:",
        "alarm memory: after step 80 memory rises all the time: policy went from 2.04 to 2.75 GiB in 80 steps "
        "(1.00 GiB per 100 steps); look at memory/policy/ in metrics.jsonl",
        "Mend what keeps memory, or go on with checks.alarms=warn.",
    ]


def test_without_alarms_nobody_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = a_run(tmp_path, "checks.alarms=off")
    assert len(rows) == STEPS and not any(name.startswith("alarms/") for row in rows for name in row)
    assert "alarm" not in capsys.readouterr().out


def test_the_start_is_told_once_and_written_with_the_first_step_of_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config([f"run.folder={tmp_path}", "run.name=r", "run.tensorboard=false"])
    with closing(Tracker(config)) as tracker:
        before_s = tracker.wall_s()
        tracker.started({"ray": 2.0, "policy": 7.25})
        for step in range(2):
            with tracker.step(step) as metrics:
                metrics |= {"tokens": 1.0, "skipped_updates": 0.0}
    first, second = (json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines())
    assert (first["time/start/ray_s"], first["time/start/policy_s"]) == (2.0, 7.25)
    assert before_s <= first["time/start_s"] < before_s + 5.0  # since the process began
    assert not any(name.startswith("time/start") for name in second)
    assert "everybody is ready (ray 2.0, policy 7.2 s)" in capsys.readouterr().out
