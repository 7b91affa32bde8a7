"""Whoever watches over a run: what is killed goes on, what is asked to stop stops, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
PREAMBLE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from engine.stopping import StopAsked, StopSignals
from engine.supervisor import WORKER_DIED, supervised

folder = Path(sys.argv[1])
attempts = folder / "attempts"

def noted():
    with attempts.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return len(attempts.read_text().splitlines())
"""


@contextmanager
def watched(folder: Path, attempt: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs `attempt`, the body of a function of `terms` and `again`, under supervision."""
    body = "\n".join(f"    {line}" for line in attempt.strip("\n").splitlines())
    script = f"{PREAMBLE}\ndef attempt(terms, again):\n{body}\n\nsys.exit(supervised(attempt))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def result(folder: Path, attempt: str) -> tuple[int, str]:
    with watched(folder, attempt) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output


def number_of_attempts(folder: Path) -> int:
    return len((folder / "attempts").read_text().splitlines())


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_run_that_ends_by_itself_is_made_once_and_its_exit_code_is_the_commands(tmp_path: Path, code: int) -> None:
    exit_code, output = result(
        tmp_path, f"terms.agree(max_restarts=3, grace_s=5)\nnoted()\nprint('done')\nreturn {code}"
    )
    assert (exit_code, output, number_of_attempts(tmp_path)) == (code, "done\n", 1)


DIES = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "segfault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "worker": "return WORKER_DIED",
}


@pytest.mark.parametrize("how", DIES)
def test_a_run_that_is_killed_is_made_again_and_told_so(tmp_path: Path, how: str) -> None:
    attempt = f"""
terms.agree(max_restarts=3, grace_s=5)
print("again" if again else "first", flush=True)
if noted() < 3:
    {DIES[how]}
return 0
"""
    exit_code, output = result(tmp_path, attempt)
    assert exit_code == 0, output
    assert number_of_attempts(tmp_path) == 3
    assert [line for line in output.splitlines() if not line.startswith("heliostat")] == ["first", "again", "again"]
    assert output.count("going on from the newest checkpoint") == 2 and "max_restarts: 1 left" in output
    assert ("killed by SIG" in output) == (how != "worker")


def test_an_agent_of_ray_is_not_waited_for_as_the_runs_own_processes_are(tmp_path: Path) -> None:
    """The run's own outlives the agent, and says so before its own time is up."""
    attempt = """
terms.agree(max_restarts=1, grace_s=5)
if noted() == 2:
    return 0
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
agent = subprocess.Popen(["ray::DashboardAgent", "-c", deaf], executable=sys.executable)
own = "import os, sys, time\\nwhile os.path.exists(f'/proc/{sys.argv[1]}'): time.sleep(0.02)\\nopen(sys.argv[2], 'w')"
subprocess.Popen([sys.executable, "-c", own, str(agent.pid), str(folder / "outlived")])
os.kill(os.getpid(), signal.SIGKILL)
"""
    exit_code, output = result(tmp_path, attempt)
    assert exit_code == 0, output
    assert (tmp_path / "outlived").exists()


def test_restarts_in_vain_end_and_a_new_checkpoint_makes_them_start_over(tmp_path: Path) -> None:
    dies = "terms.agree(max_restarts=2, grace_s=5)\nif noted() == 2: terms.committed()\nreturn WORKER_DIED"
    assert result(tmp_path, dies)[0] == 3
    # The second attempt saved something: two more are allowed after it.
    assert number_of_attempts(tmp_path) == 1 + 1 + 2


def test_a_run_that_dies_before_it_has_read_its_settings_is_not_made_again(tmp_path: Path) -> None:
    exit_code, output = result(tmp_path, "noted()\nos.kill(os.getpid(), signal.SIGKILL)")
    assert (exit_code, number_of_attempts(tmp_path)) == (3, 1)
    assert "killed by SIGKILL" in output


STOPS = """
terms.agree(max_restarts=3, grace_s={grace_s})
stop = StopSignals()
stop.install()
noted()
try:
    with stop.held():
        print("ready", flush=True)
        time.sleep({busy_s})
        print("done", flush=True)
except StopAsked as asked:
    return asked.exit_code
return 0
"""


def until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stdout.readline() == "ready\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_run_finish_what_it_holds_and_the_exit_code_says_which(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with watched(tmp_path, STOPS.format(grace_s=20, busy_s=0.5)) as process:
        until_ready(process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert (output, process.returncode, number_of_attempts(tmp_path)) == ("done\n", code, 1)


def test_a_run_that_does_not_stop_within_its_grace_is_killed(tmp_path: Path) -> None:
    with watched(tmp_path, STOPS.format(grace_s=0.5, busy_s=60)) as process:
        until_ready(process)
        began = time.monotonic()
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143 and "did not stop within run.grace_s=0.5" in output
    assert 0.4 < time.monotonic() - began < 20


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with watched(tmp_path, STOPS.format(grace_s=60, busy_s=60)) as process:
        until_ready(process)
        began = time.monotonic()
        process.terminate()
        time.sleep(0.8)
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143
    assert time.monotonic() - began < 20


def test_a_signal_to_every_process_and_group_counts_once(tmp_path: Path) -> None:
    """As a job server sends it, and a terminal."""
    with watched(tmp_path, STOPS.format(grace_s=20, busy_s=1)) as process:
        until_ready(process)
        run = int((tmp_path / "attempts").read_text())
        assert os.getpgid(run) == run != os.getpgid(process.pid)
        for number in (run, process.pid):
            os.kill(number, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert "done" in output


STRAY = "subprocess.Popen(['sleep', '600'], start_new_session=True).pid"


@pytest.mark.parametrize("ending", ["return 0", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_a_run_has_started_and_not_ended_is_ended(tmp_path: Path, ending: str) -> None:
    attempt = f"noted()\n(folder / 'stray').write_text(str({STRAY}))\n{ending}"
    result(tmp_path, attempt)
    assert not psutil.pid_exists(int((tmp_path / "stray").read_text()))


def test_a_run_dies_with_its_watcher(tmp_path: Path) -> None:
    with watched(tmp_path, STOPS.format(grace_s=60, busy_s=60)) as process:
        until_ready(process)
        run = psutil.Process(int((tmp_path / "attempts").read_text()))
        process.kill()
        process.wait()
        psutil.wait_procs([run], timeout=10)
        assert not run.is_running() or run.status() == psutil.STATUS_ZOMBIE
