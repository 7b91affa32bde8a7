"""Hostile programs get nothing, break nothing and leave nothing; honest ones beside them keep their scores."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.sandbox import cgroups, values
from rewards.sandbox.box import Ended, Limits, Sandbox, SandboxError, SandboxRefused
from rewards.sandbox.layers import REQUIRED

ROOT = Path(__file__).parents[2]
NOBODY = 65534
DENIED = f"""
import ctypes, platform, struct, sys
sys.path.insert(0, {str(ROOT)!r})
from rewards.sandbox import linux
from rewards.sandbox.box import Limits, Sandbox, SandboxRefused
step = lambda *of: struct.pack("HBBI", *of)
number = {{"x86_64": 272, "aarch64": 97}}[platform.machine()]
deny = [step(0x20, 0, 0, 0), step(0x15, 0, 1, number), step(6, 0, 0, 0x50000 | {errno.EPERM})]
deny += [step(6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(deny))
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
linux.prctl(linux.PR_SET_SECCOMP, 2, ctypes.c_char_p(struct.pack("HxxxxxxP", len(deny), ctypes.addressof(code))))
try:
    with Sandbox(limits=Limits(timeout_s=2.0), slots=1, allow_missing=sys.argv[1:]) as sandbox:
        print(sandbox.script("print(1)", stdin="").stdout, end="")
        print(sandbox.script("import time; time.sleep(9)", stdin="", timeout_s=0.2).ended.value)
except SandboxRefused as error:
    print(error)
    raise SystemExit(2)
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(limits=Limits(timeout_s=5.0, memory_mb=256, output_bytes=1 << 16), slots=1) as sandbox:
        yield sandbox


def python_for(user: int) -> str:
    """An interpreter that this user can execute."""
    for python in (sys.executable, shutil.which("python3", path="/usr/bin") or ""):
        starts = python and subprocess.run(
            [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"],
            cwd="/", env={}, user=user, capture_output=True,
        ) if _executable(python, user) else None  # fmt: skip
        if starts and starts.returncode == 0:
            return python
    pytest.skip(f"user {user} can execute no Python here")


def _executable(python: str, user: int) -> bool:
    if user == os.getuid():
        return bool(python)
    found = ["/usr/bin/test", "-x", python]
    return bool(python) and subprocess.run(found, cwd="/", user=user, check=False).returncode == 0


def tried(user: int, hostile: int, honest: int) -> dict[str, object]:
    """The trial in a process of its own, inside limits that hold whatever the sandbox does."""
    groups = cgroups.make(99, memory_mb=6000, processes=512)

    def join() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text("0")
        if user != os.getuid():
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)

    command = [python_for(user), "-m", "tests.bench._hostile", "--hostile", str(hostile), "--honest", str(honest)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, preexec_fn=join, capture_output=True, text=True, check=False
        )
    finally:
        cgroups.remove(groups)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def check(found: dict[str, object], user: int) -> None:
    wrong = ("rewarded", "escaped", "honest_wrong", "late", "left_behind", "connects", "markers")
    assert not {name: found[name] for name in wrong if found[name]}, found["problems"]
    assert found["uid"] == user and found["classes"] >= 30
    assert set(REQUIRED) <= set(found["layers"])


def test_hostile_programs_win_nothing():
    check(tried(os.getuid(), 180, 90), os.getuid())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_hostile_programs_win_nothing_from_an_unprivileged_user():
    check(tried(NOBODY, 120, 60), NOBODY)


@pytest.mark.slow
@pytest.mark.parametrize("user", sorted({os.getuid(), NOBODY} if os.getuid() == 0 else {os.getuid()}))
def test_ten_thousand_hostile_programs_win_nothing(user: int):
    check(tried(user, 10_000, 5_000), user)


@pytest.mark.parametrize(
    "program", ["open('{0}').read()", "print(open('{0}').read())", "import os; print(os.listdir('{1}'))"]
)
def test_the_canaries_are_real(tmp_path: Path, sandbox: Sandbox, program: str):
    # The same program succeeds outside: what the sandbox denies is there to be had.
    secret = tmp_path / "secret"
    secret.write_text("here")
    source = program.format(secret, tmp_path)
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
    assert sandbox.script(source, stdin="").code == 1


@pytest.mark.parametrize("allowed", [(), ("network",)])
def test_without_namespaces_it_refuses_and_names_the_way_out(allowed: tuple[str, ...]):
    refused = subprocess.run(
        [sys.executable, "-c", DENIED, *allowed], capture_output=True, text=True, check=False, cwd="/"
    )
    assert refused.returncode == 2, refused
    assert "reward.arguments.allow_missing=[pid" in refused.stdout
    assert ("network ([Errno" in refused.stdout) == (not allowed)


def test_without_namespaces_it_runs_when_told_to():
    ran = subprocess.run(
        [sys.executable, "-c", DENIED, "pid", "network", "filesystem"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert ran.stdout == "1\ntimeout\n", ran


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxRefused, match="Linux only"):
        Sandbox(limits=Limits())


def test_the_clock_ends_what_does_not_end(sandbox: Sandbox):
    started = time.monotonic()
    assert sandbox.script("while True: pass", stdin="", timeout_s=0.3).ended is Ended.TIMEOUT
    assert time.monotonic() - started < 0.8


def test_output_has_a_limit(sandbox: Sandbox):
    outcome = sandbox.script("while True: print('x' * 1000)", stdin="")
    assert outcome.ended is Ended.OUTPUT and len(outcome.stdout) <= 1 << 16


def test_a_program_finds_nothing_of_the_one_before(sandbox: Sandbox):
    sandbox.script("open('/tmp/left', 'w').write('x'); import math; math.pi = 3; print('REMEMBER' + 'ME')", stdin="in")
    looks = (
        "import os, math, gc\nprint(os.listdir('/tmp'), math.pi > 3.1, "
        "any('REMEMBER'+'ME' == o for o in gc.get_objects()))"
    )
    assert sandbox.script(looks, stdin="").stdout == "[] True False\n"


def test_memory_of_the_keeper_holds_no_earlier_program(sandbox: Sandbox):
    secret = "NEEDLE_" + "83641"
    sandbox.script(f"print('{secret}', input())", stdin=f"{secret} in")
    # Every writable page of the process that programs are forked from is copied into the program.
    pages = _pages_of(sandbox)
    assert len(pages) > 1 << 20
    assert secret.encode() not in pages


def _pages_of(sandbox: Sandbox) -> bytes:
    launcher = sandbox._slots[0].launcher.pid
    [keeper] = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    held = []
    with open(f"/proc/{keeper}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{keeper}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(one, 16) for one in span.split("-"))
            if rights.startswith("rw") and "[v" not in line:
                memory.seek(start)
                held.append(memory.read(end - start))
    return b"".join(held)


def test_a_keeper_that_dies_is_trouble_once(sandbox: Sandbox):
    sandbox._slots[0].launcher.kill()
    sandbox._slots[0].launcher.wait()
    with pytest.raises(SandboxError):
        sandbox.script("print(1)", stdin="")
    assert sandbox.script("print(1)", stdin="").stdout == "1\n"


def test_nothing_outlives_its_parent():
    holds = (
        "import os, signal\nfrom rewards.sandbox.box import *\ns = Sandbox(limits=Limits(), slots=1)\n"
        "print(s._slots[0].launcher.pid, flush=True)\ns.script('while True: pass', stdin='', timeout_s=60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", holds], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    launcher = int(parent.stdout.readline())
    time.sleep(0.3)
    family = [launcher, *_children(launcher)]
    family += _children(family[1])
    assert len(family) == 3
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while any(_lives(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_lives(pid) for pid in family)


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(10**30), 1.5, "é\ud800", [1, [2]], (1, ()), {1: (2,), "a": {3}}, frozenset([1]), b"x", 1j],
)
def test_plain_values_come_back_as_they_were(value: object):
    assert values.read(values.write(value)) == value
    assert type(values.read(values.write(value))) is type(value)


@pytest.mark.parametrize(
    "text", ["{}", '{"a": 1}', '{"int": 5}', '{"dict": [[[], 1]]}', "[" * 5000, '{"tuple": 3}', "x"]
)
def test_what_is_no_plain_value_is_refused(text: str):
    with pytest.raises(ValueError):
        values.read(text)
