"""A worker's log is bounded, whoever writes to it, and its newest lines are the ones that stay."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosted import hosting_for

from workers.bounded_log import LOG_LIMIT, old_of
from workers.group import WorkerGroup
from workers.places import Place

LIMIT = 100_000
CHILD = """
import time
for number in range(1500):
    print(f"child  {number:06d}", "x" * 85, flush=True)
    time.sleep(0.0005)
"""
WORKER = """
import faulthandler, subprocess, sys, time
from pathlib import Path
from workers.actor_class import _redirect_output
from workers.bounded_log import keep_bounded

log, limit, child = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
_redirect_output(log)
keep_bounded(log, limit=limit, look_every_s=0.02)
print("the very first line", flush=True)
for number in range(1500):
    print(f"worker {number:06d}", "x" * 85, flush=True)
    time.sleep(0.0005)
subprocess.run([sys.executable, "-c", child], check=True)
# Nothing yet is in it while it is being shortened.
while not 0 < log.stat().st_size <= limit:
    time.sleep(0.02)
print("the very last line", flush=True)
faulthandler.dump_traceback()
"""
"""It writes 150 KB, and then a process that it started does."""


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log that got three times as much as it may hold."""
    log = tmp_path_factory.mktemp("logs") / "reward_0.log"
    subprocess.run([sys.executable, "-c", WORKER, str(log), str(LIMIT), CHILD], check=True, timeout=120)
    return log


def test_two_limits_are_kept_of_any_flood(flooded: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in flooded.parent.iterdir()}
    assert sizes.keys() == {"reward_0.log", "reward_0.log.old"}
    assert LIMIT // 8 < sizes["reward_0.log"] <= LIMIT + 10_000, "what comes between two looks may be above"
    assert LIMIT // 2 < sizes["reward_0.log.old"] <= LIMIT


def test_the_first_lines_stay_and_the_newest_whoever_wrote_them(flooded: Path) -> None:
    assert old_of(flooded).read_text().startswith("the very first line\n")
    lines = flooded.read_text().splitlines()
    lines.remove("(earlier lines are in reward_0.log.old, as far as they are kept)")
    newest = lines[: lines.index("the very last line")]
    numbers = [int(line.split()[1]) for line in newest if re.fullmatch(r"child  \d{6} x{85}", line)]
    assert len(numbers) == len(newest) > 50, "no line is cut, and no hole is left where the file was longer"
    # Some may be lost in the moment when the file is shortened.
    assert len(set(numbers)) == len(numbers) and max(numbers) > 1000


def test_who_asks_what_the_worker_does_is_not_told_of_the_thread_that_looks(flooded: Path) -> None:
    stacks = flooded.read_text().partition("the very last line")[2]
    assert "sched.py" in stacks and "bounded_log.py" not in stacks


def test_the_log_of_a_workers_process_is_bounded(tmp_path: Path) -> None:
    class Loud:
        def flood(self) -> None:
            for _ in range(70):
                os.write(1, (b"x" * 99 + b"\n") * 10_486)

    class LoudGroup(WorkerGroup):
        def flood(self) -> None:
            self.wait([actor.flood.remote() for actor in self._actors], verb="flood")

    places = [Place(role="reward", index=0, cpus=1.0, gpus=0.0)]
    with hosting_for(places, tmp_path, call_timeout_s=60.0) as hosting:
        group = LoudGroup(Loud, hosting, role="reward", arguments=[()])
        group.flood()
        log, deadline = tmp_path / "reward_0.log", time.monotonic() + 30.0
        while log.stat().st_size > LOG_LIMIT and time.monotonic() < deadline:
            time.sleep(0.1)
        assert log.stat().st_size + old_of(log).stat().st_size < 1.2 * LOG_LIMIT
