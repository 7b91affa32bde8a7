"""Programs are judged by tests that they never see the answers of."""

from __future__ import annotations

import json

import pytest

from rewards import code
from rewards.code import passes, program_of
from rewards.load import RewardError
from rewards.sandbox.box import SandboxError
from rewards.score import CannotJudge

SCRIPTS = json.dumps({"inputs": ["1\n", "5\n"], "outputs": ["2\n", "6"]})


def judged(program: str, tests: object, **more: object) -> float:
    answer = tests if isinstance(tests, str) else json.dumps(tests)
    return passes(f"Here:\n```python\n{program}\n```\n", answer, timeout_s=3.0, **more)["passed"]


def test_scripts_are_judged_by_what_they_print():
    assert judged("print(int(input()) + 1)", SCRIPTS) == 1.0
    assert judged("print(int(input()) + 2)", SCRIPTS) == 0.0
    assert judged("print(2)", SCRIPTS) == 0.0
    assert judged("print(2)", SCRIPTS, all_or_nothing=False) == 0.5
    assert judged("print(int(input()) + 1)\n1 / 0", SCRIPTS) == 0.0


def test_asserts_are_taken_apart():
    tests = [
        "assert f(1) == 2",
        "assert set(f2(1)) == set([1, 2])",
        "assert not f(-1)",
        "assert abs(f(1) - 2.0) < 1e-6",
    ]
    assert judged("def f(x): return x + 1\ndef f2(x): return [2, 1, 1]", tests) == 1.0
    assert judged("def f(x): return x + 1\ndef f2(x): return [2]", tests) == 0.0
    assert judged("def f(x): return x + 1\ndef f2(x): return [2]", tests, all_or_nothing=False) == 0.75


def test_a_check_of_a_candidate_is_taken_apart():
    check = (
        "METADATA = {}\n\ndef check(candidate):\n"
        "    assert candidate([1]) == [2]\n    assert candidate([]) == [], 'empty'\n"
    )
    assert judged("def up(x): return [i + 1 for i in x]", check, entry_point="up") == 1.0
    assert judged("def up(x): return [2]", check, entry_point="up") == 0.0


def test_calls_are_judged_as_json_has_them():
    calls = {"fn_name": "pair", "inputs": [[1, "a"], [2, "b"]], "outputs": [[1, "a"], [2, "b"]]}
    assert judged("def pair(a, b): return a, b", calls) == 1.0
    assert judged("class Solution:\n    def pair(self, a, b): return [a, b]", calls) == 1.0
    wrapped = {"fn_name": "up", "inputs": [[1], [2]], "outputs": [[2], [3]]}
    assert judged("def up(a): return a + 1", wrapped) == 1.0
    lines = [{"input": "1\n[2]", "output": "[1, 2]", "testtype": "functional"}]
    assert judged("class Solution:\n    def f(self, a, b): return [a, *b]", lines, func_name="f") == 1.0


@pytest.mark.parametrize(
    "forger",
    [
        "class E(int):\n    __eq__ = lambda s, o: True\ndef f(x): return E(3)",
        "import sys\ndef f(x):\n    g = sys._getframe()\n    while g: g.f_locals['passed'] = True; g = g.f_back",
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
    ],
)
def test_nothing_is_forged(forger: str):
    assert judged(forger, ["assert f(1) == 7919"]) == 0.0
    assert judged(forger, {"inputs": [""], "outputs": ["7919"]}) == 0.0


def test_an_expected_empty_output_is_no_gift():
    assert judged("raise ValueError", {"inputs": [""], "outputs": [""]}) == 0.0


def test_a_hidden_question_comes_after_the_answer_before_it():
    # A program that would read ahead finds nothing to read.
    peeks = "import select\ndef f(x): return bool(select.select([4], [], [], 0.05)[0])"
    assert judged(peeks, ["assert f(1) == False", "assert f(12345) == False"]) == 1.0


def test_tests_that_cannot_be_taken_apart_are_not_run_unasked():
    tests = "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == i\n"
    with pytest.raises(CannotJudge, match="tests_in_sandbox"):
        judged("def f(x): return x", tests, entry_point="f")
    assert judged("def f(x): return x", tests, entry_point="f", tests_in_sandbox=True) == 1.0
    assert judged("def f(x): return 1", tests, entry_point="f", tests_in_sandbox=True) == 0.0


def test_an_assert_that_would_carry_its_answer_along_cannot_be_taken_apart():
    for test in ("assert all([f(1) == 2])", "assert math.isclose(f(1), 2)", "assert f(1) == 2 and f(2) == 3"):
        with pytest.raises(CannotJudge):
            judged("def f(x): return x", [test])


def test_a_row_without_tests_is_no_zero():
    for answer in ("", "[]", "{}", json.dumps({"inputs": ["1"], "outputs": []}), "def check("):
        with pytest.raises(CannotJudge):
            passes("print(1)", answer)


def test_trouble_of_the_sandbox_is_no_zero(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise SandboxError("no more processes")

    monkeypatch.setattr(code, "_sandbox", broken)
    with pytest.raises(CannotJudge, match="no more processes"):
        passes("print(1)", SCRIPTS)


def test_an_unknown_wall_is_named():
    with pytest.raises(RewardError, match="allow_missing names netwrk"):
        passes("print(1)", SCRIPTS, allow_missing=["netwrk"])


def test_the_last_block_counts():
    assert program_of("```python\na\n```\n```bash\nls\n```\n```py\nb\n```") == "b\n"


def test_long_texts_take_no_time():
    program_of("```python\n" * 50_000)
    assert passes("x" * 10_000_000, SCRIPTS) == {"passed": 0.0}
