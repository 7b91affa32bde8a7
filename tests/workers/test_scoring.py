"""A reward behind a process: whatever one response does to it, the others keep their scores."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from asked import item

import workers.scoring
import workers.scoring_link
from engine.judging import reward_specs
from rewards.load import RewardError
from rewards.score import Failure, FailureKind, Judgement, Score
from rewards.spec import Isolation
from workers.config import RewardConfig
from workers.processes import ROOT
from workers.scoring import RewardProcess
from workers.scoring_child import Limits

LONG = Limits(timeout_s=1000.0, memory_gib=4.0)
HOSTILE = """
import ctypes, os, signal, subprocess, sys, threading, time

class Five:
    def __float__(self):
        return 5.0

class Broken:
    def __float__(self):
        raise ArithmeticError("no number")

def hostile(response, answer, **row):
    if response == "loop":
        while True:
            pass
    if response == "deaf":
        for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
            signal.signal(number, signal.SIG_IGN)
        ctypes.PyDLL(None).sleep(1000)  # in C, holding the interpreter's lock
    if response == "program":
        subprocess.run(["sleep", row["seconds"]])
    if response == "fork":
        if os.fork() == 0:
            return 3.0
        os.wait()
    if response == "orphan":
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(7)
    if response == "exit":
        os._exit(3)
    if response == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if response == "closes":
        os.closerange(3, 1 << 16)
        time.sleep(1000)
    if response == "thread":
        threading.Timer(0.05, os._exit, (9,)).start()
    if response == "raise":
        raise KeyError("the key")
    if response == "sys.exit":
        sys.exit("bye")
    if response == "print":
        print("to stdout" * 10_000)
        sys.stdout.write("more")
        os.write(1, b"and more")
    if response == "row":
        row["changed"] = row.get("changed", 0) + 1
        return float(row["changed"])
    returned = {
        "none": None, "nan": float("nan"), "inf": {"a": 1.0, "b": float("inf")}, "text": "good", "huge": 10 ** 400,
        "five": Five(), "broken": Broken(), "bool": True, "parts": {"a": 1, "b": 0.5},
    }
    if response == "many":
        return dict.fromkeys(range(100_000), 1)
    if response == "numpy":
        import numpy
        return numpy.float32(0.5)
    return returned.get(response, float(response == answer))
"""


@pytest.fixture(scope="module", params=[Isolation.SAMPLE, Isolation.WORKER], ids=lambda isolation: isolation.value)
def hostile(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RewardProcess]:
    """In both kinds of processes. Tests share one of each: whatever they do to it, the next one is judged."""
    folder = tmp_path_factory.mktemp("hostile")
    with contextlib.closing(reward(folder, HOSTILE, "hostile", timeout_s=1.0, isolation=request.param)) as process:
        yield process


def reward(
    folder: Path,
    text: str,
    name: str,
    timeout_s: float,
    isolation: Isolation = Isolation.AUTO,
    memory_gib: float = 4.0,
    **arguments: object,
) -> RewardProcess:
    file = folder / "mine.py"
    file.write_text(text, encoding="utf-8")
    specs = reward_specs(RewardConfig(function=f"{file}:{name}", arguments=arguments, isolation=isolation))
    return RewardProcess(specs, Limits(timeout_s=timeout_s, memory_gib=memory_gib))


def judge(process: RewardProcess, *responses: str, row: Mapping[str, object] | None = None) -> list[Judgement]:
    return list(process.judge(0, [item(response, row=row) for response in responses]))


def kinds(judgements: list[Judgement]) -> list[FailureKind | float]:
    return [judgement.kind if isinstance(judgement, Failure) else judgement.total for judgement in judgements]


def processes_with(word: str) -> list[str]:
    """The living processes whose command line or environment holds `word`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if state != "Z" and word.encode() in text:
                found.append(entry.name)
    return found


def comes_true(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_batch_is_judged_in_order(hostile: RewardProcess) -> None:
    assert kinds(judge(hostile, "46", "45", "parts", "46")) == [1.0, 0.0, 1.5, 1.0]
    assert judge(hostile) == []
    assert judge(hostile, "parts") == [Score(total=1.5, parts={"a": 1.0, "b": 0.5})]


def test_texts_larger_than_a_pipe_or_that_no_encoding_holds_are_judged(hostile: RewardProcess) -> None:
    assert kinds(judge(hostile, *["x" * 100_000, "\ud800\x00\u202e", "46"] * 30)) == [0.0, 0.0, 1.0] * 30


@pytest.mark.parametrize("way", ["loop", "deaf", "program"])
def test_a_hung_response_times_out_and_the_others_keep_their_scores(hostile: RewardProcess, way: str) -> None:
    responses = ["46", way, "45", way, way, "46", "45", "46"]
    start = time.monotonic()
    judgements = judge(hostile, *responses, row={"seconds": "1000.25"})
    timeout = FailureKind.TIMEOUT
    assert kinds(judgements) == [1.0, timeout, 0.0, timeout, timeout, 1.0, 0.0, 1.0]
    assert isinstance(judgements[1], Failure) and "no answer within 1 s" in judgements[1].reason
    assert 3.0 <= time.monotonic() - start < 10
    assert comes_true(lambda: not processes_with("1000.25"))


@pytest.mark.parametrize(
    ("way", "said"), [("exit", "code 3"), ("segfault", "SIGSEGV"), ("closes", "closed its pipe"), ("orphan", "code 7")]
)
def test_a_crash_costs_only_the_response_it_was_on(hostile: RewardProcess, way: str, said: str) -> None:
    judgements = judge(hostile, "46", way, "45", way, "46")
    assert kinds(judgements) == [1.0, FailureKind.CRASH, 0.0, FailureKind.CRASH, 1.0]
    assert isinstance(judgements[1], Failure) and said in judgements[1].reason


def test_an_exception_is_a_failure_with_its_traceback(tmp_path: Path) -> None:
    with contextlib.closing(reward(tmp_path, HOSTILE, "hostile", timeout_s=20.0)) as process:
        judgements = judge(process, "raise", "sys.exit", "broken", "huge", "text", "many", "46")
    raised, misshaped = FailureKind.EXCEPTION, FailureKind.MISSHAPED
    assert kinds(judgements) == [raised, raised, raised, FailureKind.NOT_FINITE, misshaped, misshaped, 1.0]
    said = ("KeyError: 'the key'", "SystemExit: bye", "ArithmeticError: no", "1329 bits", "'good'", "fewer")
    for judgement, words in zip(judgements[:6], said, strict=True):
        assert isinstance(judgement, Failure) and words in judgement.reason
    assert 'mine.py", line' in judgements[0].reason and 'raise KeyError("the key")' in judgements[0].reason
    assert "scoring_child" not in judgements[0].reason


def test_no_score_is_a_failure_and_never_a_zero(hostile: RewardProcess) -> None:
    not_finite = FailureKind.NOT_FINITE
    assert kinds(judge(hostile, "none", "nan", "inf", "46")) == [FailureKind.UNSCORABLE, not_finite, not_finite, 1.0]


def test_anything_that_is_a_number_is_a_score(tmp_path: Path) -> None:
    with contextlib.closing(reward(tmp_path, HOSTILE, "hostile", timeout_s=20.0)) as process:  # time to import numpy
        assert kinds(judge(process, "numpy", "five", "bool")) == [0.5, 5.0, 1.0]


TOGETHER = """
import os, rewards.calling
from rewards.score import judgement_of

# As a function that judges all responses to a prompt at once is bound, and nothing else of it.
rewards.calling.BoundReward.judges_together = property(lambda self: True, lambda self, value: None)
rewards.calling.BoundReward.judge = lambda self, items: together([item.response for item in items])

def f(response, answer): ...

def together(responses):
    if "raise" in responses:
        raise ValueError("one of them")
    if "exit" in responses:
        os._exit(3)
    while "hang" in responses:
        pass
    if "short" in responses:
        return []
    return [judgement_of(len(responses), name="f") for _ in responses]
"""


@pytest.mark.parametrize("isolation", [Isolation.SAMPLE, Isolation.WORKER], ids=lambda kind: kind.value)
def test_one_bad_response_of_a_call_for_all_costs_its_own_score(tmp_path: Path, isolation: Isolation) -> None:
    bad = {
        "raise": FailureKind.EXCEPTION,
        "exit": FailureKind.CRASH,
        "hang": FailureKind.TIMEOUT,
        "short": FailureKind.MISSHAPED,
    }
    with contextlib.closing(reward(tmp_path, TOGETHER, "f", timeout_s=1.0, isolation=isolation)) as process:
        assert kinds(judge(process, "46", "45", "44")) == [3.0] * 3  # by one call
        for way, kind in bad.items():
            assert kinds(judge(process, "46", way, "44")) == [1.0, kind, 1.0]


def test_printing_does_not_disturb_the_answers(hostile: RewardProcess) -> None:
    assert kinds(judge(hostile, "print", "46", "print")) == [0.0, 1.0, 0.0]


def test_a_reward_that_changes_its_row_changes_it_for_nobody_else(hostile: RewardProcess) -> None:
    assert kinds(judge(hostile, "row", "row", row={"seconds": "1"})) == [1.0, 1.0]


def test_a_copy_that_the_reward_forks_does_not_answer(hostile: RewardProcess) -> None:
    assert kinds(judge(hostile, "fork", "46", "45")) == [0.0, 1.0, 0.0]


def test_a_process_that_died_between_batches_is_replaced(hostile: RewardProcess) -> None:
    assert kinds(judge(hostile, "thread")) == [0.0]
    time.sleep(0.3)
    assert kinds(judge(hostile, "46", "45")) == [1.0, 0.0]


def test_a_process_started_by_a_thread_that_ended_is_replaced(tmp_path: Path) -> None:
    made: list[RewardProcess] = []
    thread = threading.Thread(target=lambda: made.append(reward(tmp_path, HOSTILE, "hostile", 5.0)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with contextlib.closing(made[0]):
        assert kinds(judge(made[0], "46")) == [1.0]


def test_an_interrupted_batch_does_not_answer_for_the_next(hostile: RewardProcess) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.15)
    try:
        with pytest.raises(KeyboardInterrupt):
            judge(hostile, "46", "loop", "46")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert kinds(judge(hostile, "45", "45")) == [0.0, 0.0]


def test_each_response_has_the_whole_time_from_when_it_starts(tmp_path: Path) -> None:
    text = "import os, time\ntime.sleep(1.2)\ndef slow(response, answer):\n    time.sleep(0.4)\n"
    text += "    return 1 if response != 'exit' else os._exit(3)\n"
    for isolation in (Isolation.SAMPLE, Isolation.WORKER):
        with contextlib.closing(reward(tmp_path, text, "slow", 1.0, isolation)) as process:  # importing takes longer
            assert kinds(judge(process, "a", "b", "c", "exit", "d")) == [1.0, 1.0, 1.0, FailureKind.CRASH, 1.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_package_at_all", "No module named 'no_such_package_at_all'"),
        ("def other(response, answer): ...", "its functions are other"),
        ("import os; os._exit(5)", "it exited with code 5"),
        ("def f(response, answer): ...", "takes answer, response"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_an_error_at_construction(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        reward(tmp_path, text, "f", 1.0, scale=2.0)


def test_an_import_that_never_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.scoring_link, "START_LIMIT_S", 0.5)
    with pytest.raises(RewardError, match=r"no answer within 0\.5 s"):
        reward(tmp_path, "while True: pass", "f", 1.0)


def test_a_process_that_only_dies_ends_the_run_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.scoring, "MAX_CRASHES_IN_A_ROW", 3)
    with contextlib.closing(reward(tmp_path, HOSTILE, "hostile", 1.0, isolation=Isolation.WORKER)) as process:
        assert kinds(judge(process, "exit", "exit", "46", "exit", "exit"))[2] == 1.0
        with pytest.raises(RuntimeError, match=r"mine\.py:hostile: its process died 3 times in a row .* code 3"):
            judge(process, "exit")
        assert kinds(judge(process, "46", *["loop"] * 4)) == [1.0] + [FailureKind.TIMEOUT] * 4  # no fault of it


def test_a_closed_process_judges_no_more(tmp_path: Path) -> None:
    process = reward(tmp_path, HOSTILE, "hostile", timeout_s=0.4)
    process.close()
    process.close()
    with pytest.raises(ValueError, match="is closed"):
        judge(process, "46")


def test_nothing_is_left_after_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"after-close-under-{os.getpid()}"
    monkeypatch.setenv("MARK", mark)
    process = reward(tmp_path, HOSTILE, "hostile", timeout_s=0.3)
    judge(process, "46", "loop", "orphan", "46")
    descriptors = len(os.listdir("/proc/self/fd"))
    assert processes_with(mark)
    process.close()
    assert comes_true(lambda: not processes_with(mark))
    assert len(os.listdir("/proc/self/fd")) == descriptors - 3


@pytest.mark.parametrize("response", ["46", "loop", "deaf", "program", "orphan"])
def test_nothing_is_left_after_the_parent_is_killed(tmp_path: Path, response: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HOSTILE, encoding="utf-8")
    mark = f"after-kill-of-{response}-under-{os.getpid()}"
    start = pickle.dumps((reward_specs(RewardConfig(function=f"{file}:hostile")), LONG)).hex()
    program = (
        "import pickle, sys, time\nfrom workers.scoring import RewardProcess\n"
        "process, items = RewardProcess(*pickle.loads(bytes.fromhex(sys.argv[1]))), bytes.fromhex(sys.argv[2])\n"
        "print('judging', flush=True)\nprocess.judge(0, pickle.loads(items))\ntime.sleep(1000)\n"
    )
    environment = {**os.environ, "MARK": mark, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", program, start, pickle.dumps([item(response, row={"seconds": "1000"})]).hex()],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None and parent.stdout.readline() == "judging\n"
        time.sleep(0.2)
        assert len(processes_with(mark)) >= 2
    finally:
        parent.kill()
        parent.communicate()
    assert comes_true(lambda: not processes_with(mark))


def test_the_process_loads_no_torch_and_starts_quickly(tmp_path: Path) -> None:
    text = "import sys\ndef heavy(response, answer):\n    return len({'torch', 'numpy', 'ray'} & set(sys.modules))\n"
    start = time.monotonic()
    with contextlib.closing(reward(tmp_path, text, "heavy", timeout_s=1.0)) as process:
        assert kinds(judge(process, "")) == [0.0]
    assert time.monotonic() - start < 3
