"""What a person meets at the command line: help, mistakes, a reward of their own, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from runs import REPOSITORY

COMMAND = [sys.executable, "-m", "engine.main"]


def test_help_shows_how_to_choose_and_every_section() -> None:
    shown = subprocess.run([*COMMAND, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for word in ("train.learning_rate", "rollout.temperature", "algo", "data", "reward.function", "run.resume"):
        assert word in shown


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("train.learning_rat=1e-4", "train.learning_rate"),
        ("algo=gpro", "grpo"),
        ("reward.function=nowhere.py:correct", "nowhere.py"),
        ("reward.function=rewards.number:exakt", "exact"),
        ("data=gsm8k data.path=nowhere.jsonl", "nowhere.jsonl"),
        ("rollout.max_response_tokens=505", "505"),
    ],
)
def test_a_mistake_ends_before_ray_starts_with_what_to_do(mistake: str, told: str, tmp_path: Path) -> None:
    overrides = [*mistake.split(), f"run.folder={tmp_path}"]
    done = subprocess.run([*COMMAND, *overrides], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "starting Ray" not in done.stdout


def test_ctrl_c_leaves_no_process_and_a_reward_of_ones_own_is_used(tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text("def odd(response: str, answer: str, **row) -> float:\n    return float(len(response) % 2)\n")
    overrides = [f"reward.function={reward}:odd", "rollout.engine=hf", "algo.kl_coef=0", "evaluation.prompts=0"]
    run = subprocess.Popen(
        [*COMMAND, *overrides, f"run.folder={tmp_path}", "run.name=stopped", "run.steps=10000"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    while not any("step 2/" in line for line in lines[-1:]):
        line = run.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    assert any("reward" in line for line in lines)
    family = psutil.Process(run.pid).children(recursive=True)
    assert len(family) >= 4  # Ray's own, and the workers
    os.kill(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130, output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, alive
    assert '"reward/odd"' in (tmp_path / "stopped" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_with_it(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [*COMMAND, f"run.folder={tmp_path}", "run.name=killed", "run.steps=10000", "rollout.engine=hf"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while "step 1/" not in (line := run.stdout.readline()):
        assert line
    family = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while any(process.is_running() for process in family) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not [process for process in family if process.is_running()]
