"""Whole runs that serve their own judge: a tiny model with random weights, which never writes a verdict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import REPOSITORY, run_main

from workers.processes import descendants_of

SMALL = (
    "reward.functions.taste.function=rewards.judge:rubric",
    "reward.judge.precision=float32",
    "reward.judge.context_length=4096",
    "reward.judge.max_reply_tokens=8",
    "reward.judge.kv_cache_gib=0.0625",
    "reward.timeout_s=120",
    "rollout.engine=hf",
    "rollout.prompts_per_step=2",
    "rollout.responses_per_prompt=2",
    "evaluation.prompts=0",
    "run.tensorboard=false",
)
WITHOUT_WEIGHT = ("reward.functions.taste.weight=0", "run.steps=1000")
PATIENCE_S = 900.0


def processes_of(model: Path) -> set[int]:
    """The server's, and those that it started."""
    servers = servers_of(model)
    return servers.union(*map(descendants_of, servers))


def servers_of(model: Path) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            shown = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if str(model) in shown and "workers.judge_server_child" in shown:
            found.add(int(entry.parent.name))
    return found


def key_of(server: int) -> bytes:
    settings = Path(f"/proc/{server}/environ").read_bytes().split(b"\0")
    [key] = [setting.partition(b"=")[2] for setting in settings if setting.startswith(b"VLLM_API_KEY=")]
    return key


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(holds: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def going_run(model: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A long run that has learned from its first step."""
    own = [f"reward.judge.model={model}", f"run.folder={folder}", "run.name=going"]
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.main", *SMALL, *WITHOUT_WEIGHT, *own],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = folder / "going" / "metrics.jsonl"
    try:
        wait_until(lambda: process.poll() is not None or (metrics.exists() and "time/step_s" in metrics.read_text()))
        assert process.poll() is None, process.stdout.read()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_judge_that_writes_no_verdict_is_a_failure_of_each_response_and_leaves_nothing(
    judge_model: Path, tmp_path: Path
) -> None:
    run = run_main(*SMALL, f"reward.judge.model={judge_model}", folder=tmp_path, name="unreadable")
    assert run.exit_code == 1, run.output
    assert "reward rewards.judge:rubric: tried when its judge nano-judge is up" in run.output
    assert run.output.index("judge 0 is ready") < run.output.index("reward 0 is ready")
    assert "could not be judged (2 x unreadable)" in run.output  # of the first group
    assert "no reply of nano-judge at http://127.0.0.1:" in run.output
    wait_until(lambda: not processes_of(judge_model), within_s=20.0)


@pytest.mark.slow
def test_a_server_that_dies_stops_the_run_with_its_last_words(judge_model: Path, tmp_path: Path) -> None:
    """Of a judge without weight, whose silence alone would go unnoticed."""
    with going_run(judge_model, tmp_path) as process:
        [server] = servers_of(judge_model)
        key = key_of(server)
        os.kill(server, signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, output
    told = f"the judge {judge_model} cannot be asked any more: its server died: killed by SIGKILL"
    assert f"heliostat: the run stopped: {told}" in output
    assert "raised by judge 0 while it was to answer the rewards" in output
    assert "judge_0.log" in output and "Application startup complete" in output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if key in path.read_bytes()] and key.decode() not in output
    wait_until(lambda: not processes_of(judge_model), within_s=20.0)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_the_server_outlives_the_driver(judge_model: Path, tmp_path: Path, how: signal.Signals) -> None:
    with going_run(judge_model, tmp_path) as process:
        processes = processes_of(judge_model)
        assert len(processes) >= 3
        process.send_signal(how)
        process.wait(timeout=60.0)
        wait_until(lambda: not any(map(is_alive, processes)), within_s=60.0)
