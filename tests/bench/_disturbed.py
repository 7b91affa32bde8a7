"""A run of the real command that is disturbed: who is killed when, what it then prints and when, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from safetensors.numpy import load_file

from engine.verify import OF_THIS_MACHINE, Compared, verify

REPOSITORY = Path(__file__).parents[2]
MARK_ENV = "HELIOSTAT_TEST_MARK"
"""In the environment of every process of a run: whoever has it and is alive was left behind."""
STEP = re.compile(r" step (\d+)/")
QUIET = ("run.tensorboard=false", "run.show_responses_every_steps=0", "train.schedule=constant")
OF_ENGINE = ("logprob_gap", "mismatch_")
"""Metrics of the engine's own log-probs. The transformers engine decodes together what happens to wait together, which
moves their last bits, and nothing else where they weigh nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """That a run printed."""

    at_s: float
    """`time.time()`."""
    text: str


@dataclass(slots=True, kw_only=True)
class Disturbed:
    """A run under way, or ended."""

    folder: Path
    process: subprocess.Popen[str]
    mark: str
    lines: list[Line] = field(default_factory=list)
    births: dict[str, dict[float, float]] = field(default_factory=dict)
    """Of each worker, by when a process of its own began: when that took up its name, for Ray has some ready before.
    As far as they lived for a moment."""
    _reader: threading.Thread | None = None

    @property
    def output(self) -> str:
        return "\n".join(line.text for line in self.lines)

    @property
    def driver(self) -> psutil.Process | None:
        """The run's own process, under its watcher; None while there is none."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return None
        own = [child for child in children if os.getpgid(child.pid) == child.pid and "engine.main" in _command(child)]
        return own[0] if own else None

    def worker(self, name: str) -> psutil.Process | None:
        """`policy_0`; None while it is not alive."""
        file = self.folder / "logs" / f"{name}.where"
        try:
            where = json.loads(file.read_text())
            process = psutil.Process(where["pid"])
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return process if process.create_time() == where["started_s"] else None

    def until(self, came: Callable[[], bool], *, timeout_s: float) -> None:
        """Until that is so. Raises AssertionError, with all that the run printed, when it ends before or is late."""
        deadline = time.monotonic() + timeout_s
        while not came():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.002)

    def has_said(self, text: str) -> bool:
        return any(text in line.text for line in self.lines)

    def steps_done(self) -> int:
        return max((int(found[1]) for line in self.lines if (found := STEP.search(line.text))), default=0)

    def wait(self, *, timeout_s: float) -> int:
        """Its exit code."""
        code = self.process.wait(timeout=timeout_s)
        assert self._reader is not None
        self._reader.join()
        return code

    def left_over(self, *, within_s: float = 5.0) -> list[int]:
        """Processes that bear its mark and are still alive so long after its end."""
        deadline = time.monotonic() + within_s
        while (alive := _marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return alive


def start(
    overrides: Sequence[str], *, folder: Path, name: str, environment: Mapping[str, str] | None = None
) -> Disturbed:
    """`python -m engine.main`, in the background."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.main", *QUIET, *overrides, f"run.folder={folder}", f"run.name={name}"],
        cwd=REPOSITORY,
        env={**os.environ, MARK_ENV: mark, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = Disturbed(folder=folder / name, process=process, mark=mark)

    def read() -> None:
        assert process.stdout is not None
        for text in process.stdout:
            run.lines.append(Line(at_s=time.time(), text=text.rstrip("\n")))

    run._reader = threading.Thread(target=read, daemon=True)
    run._reader.start()
    threading.Thread(target=_note_births, args=(run,), daemon=True).start()
    return run


def _note_births(run: Disturbed) -> None:
    while run.process.poll() is None:
        for file in run.folder.glob("logs/*.where"):
            with contextlib.suppress(ValueError, FileNotFoundError):  # it is being written, or moved aside
                started_s = json.loads(file.read_text())["started_s"]
                run.births.setdefault(file.stem, {}).setdefault(started_s, file.stat().st_mtime)
        time.sleep(0.1)


def kill(process: psutil.Process, number: signal.Signals = signal.SIGKILL) -> bool:
    """Whether it was there to be killed."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def differences(whole: Path, run: Path, *, engine: str) -> list[str]:
    """Where a run is not the one that nobody disturbed."""
    if engine == "vllm":
        return [aspect.told() for aspect in verify(whole, run, tolerance=0.0) if _differs(aspect)]
    told = [
        aspect.told()
        for aspect in verify(whole, run, tolerance=0.0)
        if aspect.aspect not in ("metrics", "rollouts") and _differs(aspect)
    ]
    if _comparable_metrics(whole) != _comparable_metrics(run):
        told.append("metrics differ")
    if _rollouts(whole) != _rollouts(run):
        told.append("rollouts differ")
    return told


def draws(run: Path) -> list[tuple[str, int, int]]:
    """The ledger: every response that was learned from, and in which step."""
    files = [(file.stem, load_file(file)) for file in sorted((run / "rollouts").glob("*.safetensors"))]
    return [
        (name, draw, sample)
        for name, held in files
        for draw, sample, learned_from in zip(
            *(held[key].tolist() for key in ("draw", "sample", "learned_from")), strict=True
        )
        if learned_from
    ]


def _differs(aspect: Compared) -> bool:
    return bool(aspect.differences) or not aspect.compared


def _comparable_metrics(run: Path) -> list[dict[str, object]]:
    passed_over = (*OF_THIS_MACHINE, *OF_ENGINE)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(passed_over)} for row in rows]


def _rollouts(run: Path) -> dict[str, dict[str, object]]:
    """All that is kept of every step but the engine's own log-probs."""
    files = sorted((run / "rollouts").glob("*.safetensors"))
    return {
        file.stem: {key: array.tolist() for key, array in load_file(file).items() if key != "logprobs"}
        for file in files
    }


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _marked(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK_ENV) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
