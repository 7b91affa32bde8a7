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

from engine.main import run

COMMAND = [sys.executable, "-m", "engine.main"]


def test_help_shows_how_to_choose_and_every_section() -> None:
    shown = subprocess.run([*COMMAND, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for word in ("train.learning_rate", "rollout.temperature", "algo", "data", "reward.function", "run.resume"):
        assert word in shown


MISTAKES = [
    ("train.learning_rat=1e-4", "train.learning_rate"),
    ("algo=gpro", "grpo"),
    ("modl=nano", "Did you mean model=nano?"),
    ("reward.function=nowhere.py:correct", "nowhere.py"),
    ("reward.function={rows}/broken.py:correct", "no_such_package"),
    ("reward.function=rewards.number:exakt", "exact"),
    ("data=gsm8k data.path=nowhere.jsonl", "nowhere.jsonl"),
    ("data=files data.path={rows}/empty.jsonl reward.function=rewards.number:exact", "no rows"),
    ("data=files data.path={rows}/rows.jsonl reward.function=rewards.number:exact", "the nearest is 'anwser'"),
    ("algo=sft data=files data.path={rows}/rows.jsonl", "no column 'completion'"),
    ("rollout.prompts_per_step=5 train.updates_per_step=2", "rollout.prompts_per_step=4"),
    ("model.context_length=12", "the prompt has"),
    ("rollout.max_response_tokens=505", "505"),
]


@pytest.mark.parametrize(("mistake", "told"), MISTAKES)
def test_a_mistake_ends_before_ray_starts_with_what_to_do(
    mistake: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "rows.jsonl").write_text(
        '{"question": "1+1=", "answer": "2"}\n' * 2 + '{"question": "3+1=", "anwser": "4"}\n'
    )
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own handlers
    overrides = [*mistake.format(rows=tmp_path).split(), f"run.folder={tmp_path}"]
    assert run(overrides) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert "Traceback" not in said.err.partition("importing it raised")[0]
    assert "starting Ray" not in said.out


def test_a_mistake_is_the_exit_code_of_the_command(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "algo=gpro", f"run.folder={tmp_path}"], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 2
    assert b"grpo" in done.stderr and b"Traceback" not in done.stderr


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
    lines = [run.stdout.readline()]
    os.kill(run.pid, signal.SIGUSR1)  # asked before there are workers, and again when there are
    while not any("step 2/" in line for line in lines[-1:]):
        line = run.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    assert any("reward" in line for line in lines)
    assert any(", in main" in line for line in lines)
    os.kill(run.pid, signal.SIGUSR1)
    while "everybody's whole stacks are in" not in lines[-1]:
        lines.append(run.stdout.readline())
        assert lines[-1], "".join(lines)
    assert any("the run waits for" in line for line in lines) and any("--- policy 0 is in:" in line for line in lines)
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
