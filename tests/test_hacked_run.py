"""A run that fools its reward: its alarms are told, its rollouts show how; an honest run raises none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import run_main

SEVENS = '''
def sevens(response: str, answer: str, **row: object) -> dict[str, float]:
    """Means to reward right answers, and pays for the digit 7 wherever it stands."""
    return {"correct": float(response.strip() == answer), "sevens": 1.0 * response.count("7")}
'''
SHORT = ("rollout.engine=hf", "evaluation.prompts=0", "run.tensorboard=false")


@pytest.mark.slow
def test_a_reward_that_is_fooled_raises_alarms_and_its_rollouts_show_how(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SEVENS)
    fooled = (f"reward.function={tmp_path}/mine.py:sevens", "train.learning_rate=1e-3", "run.steps=50")
    run = run_main(*SHORT, *fooled, folder=tmp_path, name="fooled")
    assert run.exit_code == 0, run.output
    alarms = {alarm["name"]: alarm["first_step"] for alarm in run.summary["alarms"]}
    assert {"length", "repetition", "parts_apart", "same_text"} <= alarms.keys()
    for name, step in alarms.items():
        assert run.output.count(f"alarm {name}: after step {step} ") == 1
        kept = run.folder / "rollouts" / f"step_{step:06d}.jsonl"
        assert f"look at {kept}" in run.output
        rows = [json.loads(line) for line in kept.read_text().splitlines()]
        assert len(rows) == 256 and all(row["parts"].keys() == {"correct", "sevens"} for row in rows)


@pytest.mark.slow
def test_an_honest_run_raises_none(tmp_path: Path) -> None:
    run = run_main(*SHORT, "run.steps=50", folder=tmp_path, name="honest")
    assert run.exit_code == 0, run.output
    assert run.summary["alarms"] == [] and "alarm" not in run.output
    assert run.output.count("best response") == run.output.count("worst response") == 5
