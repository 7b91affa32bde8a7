"""Does the response's program pass the tests? It is run in a sandbox (`rewards.sandbox`); verdicts are made out here.

A program is the last ```python block of a response, or the whole of it. The tests are the answer (JSON, or Python
asserts), or a column of the row:

    {"inputs": [...], "outputs": [...]}                 standard input and output, one process a case
    {"inputs": ..., "outputs": ..., "fn_name": "f"}     calls of f, or of Solution().f, with JSON arguments
    [{"input": ..., "output": ..., "testtype": ...}]    LiveCodeBench's form of both
    ["assert f(1) == 2", ...]                           MBPP: a list, or a text with several
    "def check(candidate): ..."                         HumanEval: with the column `entry_point`

The program's process never holds an expected value. An assert is taken apart: the sandbox is asked for the value of one
side, and the other stays here. A program's definitions are executed once, and its questions come one by one, each only
after the answer to the one before; a script that reads standard input has a fresh process for each case.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from rewards.load import RewardError
from rewards.sandbox import values
from rewards.sandbox.box import Claim, Ended, Limits, Outcome, Sandbox, SandboxError, SandboxRefused
from rewards.score import CannotJudge, FailureKind, keeps_nothing

MAX_SOURCE = 1 << 17
"""Characters of a program; a longer one has failed."""
BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
PYTHON = ("python", "py", "python3", "")
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
TEST_COLUMNS = ("test_list", "input_output", "public_tests", "tests", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test. For a script `question` is empty.

    Example:
        Case(stdin="", question={"expression": "f(1)", "before": ""}, expected=2, rule="equal", tolerance=0.0)
    """

    stdin: str
    question: Mapping[str, object]
    expected: object
    rule: str
    """`text` (standard output), `equal`, `json` (tuples are lists), `wrapped` (or the one in the list), `truth`."""
    tolerance: float


@keeps_nothing  # A sandbox lives as long as the process that judges, but each program finds a fresh one.
def passes(
    response: str,
    answer: str,
    *,
    all_or_nothing: bool = True,
    timeout_s: float = 6.0,
    memory_mb: int = 512,
    tolerance: float = 0.0,
    slots: int = 2,
    allow_missing: Sequence[str] = (),
    tests_in_sandbox: bool = False,
    **row: object,
) -> dict[str, float]:
    """`{"passed": 1.0}` if every test passes, else 0; with `all_or_nothing` False, the share that does.

    Standard output is compared line by line, without the white space at the ends of lines and of the text; words that
    are both numbers are equal if their values are, or differ by at most `tolerance`, relative or absolute. Values are
    compared by Python's `==`, after they were rebuilt of plain types.

    A program that crashes, hangs or uses too much has failed; trouble of the sandbox raises CannotJudge. Tests that
    cannot be taken apart raise it, too, unless `tests_in_sandbox`: then they run beside the program, which could forge
    their verdict. `allow_missing` names walls to do without (`python -m rewards.sandbox` shows them).
    """
    cases = _cases(_tests(answer, row), row, tolerance, forgeable=tests_in_sandbox)
    source = program_of(response)
    if not source.strip() or len(source) > MAX_SOURCE:
        return {"passed": 0.0}
    limits = Limits(timeout_s=timeout_s, memory_mb=memory_mb)
    try:
        sandbox = _sandbox(limits, slots, tuple(allow_missing))
        results = _results(sandbox, source, cases, stops=all_or_nothing)
    except SandboxRefused as error:
        raise RewardError(str(error)) from error
    except (SandboxError, OSError) as error:
        raise CannotJudge(FailureKind.UNAVAILABLE, f"sandbox: {error}") from error
    share = sum(results) / len(cases)
    return {"passed": float(share == 1) if all_or_nothing else share}


def program_of(response: str) -> str:
    """The last block of Python, or else the whole text.

    >>> program_of("So:\\n```python\\nprint(1)\\n```\\nDone."), program_of("print(2)")
    ('print(1)\\n', 'print(2)')
    """
    blocks = [text for language, text in BLOCK.findall(response) if language.lower() in PYTHON]
    return blocks[-1] if blocks else response


_kept: dict[tuple[object, ...], Sandbox] = {}


def _sandbox(limits: Limits, slots: int, allow_missing: tuple[str, ...]) -> Sandbox:
    key = (os.getpid(), limits, slots, allow_missing)
    if key not in _kept:
        _kept[key] = Sandbox(limits=limits, slots=slots, allow_missing=allow_missing)
    return _kept[key]


def _results(sandbox: Sandbox, source: str, cases: Sequence[Case], *, stops: bool) -> list[bool]:
    if cases[0].question:
        outcome = sandbox.ask(source, [case.question for case in cases])
        # A process that ends early has not answered the rest.
        return [_holds(case, claim) for case, claim in zip(cases, outcome.claims, strict=False)]
    results = []
    for case in cases:
        results.append(_prints(case, sandbox.script(source, stdin=case.stdin)))
        if stops and not results[-1]:
            break
    return results


def _prints(case: Case, outcome: Outcome) -> bool:
    if outcome.ended is not Ended.EXIT or outcome.code != 0:
        return False
    return same_text(outcome.stdout, str(case.expected), case.tolerance)


def _holds(case: Case, claim: Claim) -> bool:
    if claim.error:
        return False
    if case.rule == "truth":
        return bool(claim.value) is case.expected
    value = _as_json(claim.value) if case.rule == "json" else claim.value
    if case.rule == "wrapped":
        value, [inner] = _as_json(claim.value), case.expected
        return same(value, case.expected, case.tolerance) or same(value, inner, case.tolerance)
    return same(value, case.expected, case.tolerance)


def same(value: object, expected: object, tolerance: float) -> bool:
    """`==`; with a tolerance, numbers may differ by so much, wherever they are in lists and tuples."""
    if not tolerance:
        return bool(value == expected)
    if isinstance(value, (list, tuple)) and type(value) is type(expected) and len(value) == len(expected):
        return all(same(one, other, tolerance) for one, other in zip(value, expected, strict=True))
    if all(isinstance(one, (int, float)) for one in (value, expected)):
        try:
            return math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:
            return value == expected
    return bool(value == expected)


def same_text(given: str, expected: str, tolerance: float) -> bool:
    """Whether two outputs say the same.

    >>> same_text("1 2 \\n3.50\\n\\n", "1 2\\n3.5", 0.0), same_text("1\\n2", "1 2", 0.0), same_text("01", "1", 0.0)
    (True, False, False)
    """
    ours, theirs = ([line.split() for line in text.rstrip().splitlines()] for text in (given, expected))
    if [len(line) for line in ours] != [len(line) for line in theirs]:
        return False
    pairs = ((a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))
    return all(a == b or _same_number(a, b, tolerance) for a, b in pairs)


def _same_number(given: str, expected: str, tolerance: float) -> bool:
    if not (NUMBER.fullmatch(given) and NUMBER.fullmatch(expected)):
        return False
    # Two different whole numbers as text are two answers: 01 is not 1.
    if given.isdigit() and expected.isdigit() and not tolerance:
        return False
    if Decimal(given) == Decimal(expected):
        return True
    return bool(tolerance) and math.isclose(float(given), float(expected), rel_tol=tolerance, abs_tol=tolerance)


def _tests(answer: str, row: Mapping[str, object]) -> object:
    if answer.strip():
        try:
            tests = json.loads(answer)
        except (ValueError, RecursionError):
            return answer
        if isinstance(tests, (dict, list)):
            return tests
    if "inputs" in row and "outputs" in row:
        return row
    for column in TEST_COLUMNS:
        if row.get(column):
            held = row[column]
            return _tests(held, {}) if isinstance(held, str) else held
    raise CannotJudge(FailureKind.UNSCORABLE, f"the answer holds no tests, and no column of {', '.join(TEST_COLUMNS)}")


def _cases(tests: object, row: Mapping[str, object], tolerance: float, *, forgeable: bool) -> list[Case]:
    try:
        if isinstance(tests, str):
            cases = _asserts(tests, row, tolerance, forgeable=forgeable)
        elif isinstance(tests, Mapping):
            function = tests.get("fn_name") or row.get("fn_name")
            cases = _pairs(tests["inputs"], tests["outputs"], function, tolerance)
        elif all(isinstance(one, str) for one in tests):
            before = str(row.get("test_setup_code") or "")
            text = "\n".join([before, *tests])
            cases = _asserts(text, row, tolerance, forgeable=forgeable)
        else:
            function = row.get("fn_name") or row.get("func_name")
            inputs, outputs = ([one[key] for one in tests] for key in ("input", "output"))
            calls = any(one.get("testtype") == "functional" for one in tests)
            cases = _pairs(inputs, outputs, function if calls or function else None, tolerance)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CannotJudge(FailureKind.UNSCORABLE, f"the tests cannot be read: {error!r}") from error
    if not cases:
        raise CannotJudge(FailureKind.UNSCORABLE, "there is no test among the tests")
    return cases


def _pairs(inputs: Sequence[object], outputs: Sequence[object], function: object, tolerance: float) -> list[Case]:
    # APPS wraps what a function returns in a list of one.
    wrapped = bool(function) and all(isinstance(one, list) and len(one) == 1 for one in outputs)
    cases = []
    for given, wanted in zip(inputs, outputs, strict=True):
        if not function:
            stdin, expected = (one if isinstance(one, str) else "\n".join(map(str, one)) for one in (given, wanted))
            cases.append(Case(stdin=stdin, question={}, expected=expected, rule="text", tolerance=tolerance))
            continue
        arguments = [json.loads(line) for line in given.split("\n") if line] if isinstance(given, str) else list(given)
        expected = json.loads(wanted) if isinstance(wanted, str) and isinstance(given, str) else wanted
        question = {"call": str(function), "arguments": values.write(arguments)}
        rule = "wrapped" if wrapped else "json"
        cases.append(Case(stdin="", question=question, expected=expected, rule=rule, tolerance=tolerance))
    return cases


def _as_json(value: object) -> object:
    """Without tuples, which JSON does not have."""
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _as_json(one) for key, one in value.items()}
    return value


def _asserts(text: str, row: Mapping[str, object], tolerance: float, *, forgeable: bool) -> list[Case]:
    candidate = str(row.get("entry_point") or "")
    try:
        return _split(text, candidate, tolerance)
    except (ValueError, SyntaxError) as error:
        if not forgeable:
            raise CannotJudge(
                FailureKind.UNSCORABLE,
                f"these tests cannot be taken apart ({error}); reward.arguments.tests_in_sandbox=true runs them beside "
                "the program, which could then forge their verdict",
            ) from error
    call = f"check({candidate})\n" if "def check(" in text and candidate else ""
    question = {"expression": "True", "before": f"{text}\n{call}", "candidate": candidate}
    return [Case(stdin="", question=question, expected=True, rule="truth", tolerance=0.0)]


def _split(text: str, candidate: str, tolerance: float) -> list[Case]:
    """Each assert as a question and a value. Raises ValueError for a test that is more than asserts and imports."""
    before: list[str] = []
    asserts: list[ast.Assert] = []
    statements = list(ast.parse(text).body)
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and statement.name == "check":
            asserts += _body(statement)
        elif isinstance(statement, ast.Assert):
            asserts.append(statement)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            before.append(ast.unparse(statement))
        elif not _says_nothing(statement):
            raise ValueError(f"line {statement.lineno} is no assert: {ast.unparse(statement)[:60]}")
    imports = "\n".join(before)
    return [_case(one.test, imports, candidate, tolerance) for one in asserts]


def _body(check: ast.FunctionDef) -> list[ast.Assert]:
    asserts = [one for one in check.body if not _says_nothing(one)]
    for one in asserts:
        if not isinstance(one, ast.Assert):
            raise ValueError(f"line {one.lineno} of check is no assert: {ast.unparse(one)[:60]}")
    return asserts


def _says_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        is_check = isinstance(statement.value, ast.Call) and getattr(statement.value.func, "id", "") == "check"
        return is_check or isinstance(statement.value, ast.Constant)
    is_metadata = isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "METADATA"
    return is_metadata or isinstance(statement, ast.Pass)


def _case(test: ast.expr, before: str, candidate: str, tolerance: float) -> Case:
    asked, expected, rule = test, True, "truth"
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        asked, expected = test.operand, False
    elif isinstance(test, ast.Compare):
        asked, expected, tolerance = _compared(test, tolerance)
        rule = "equal"
    if not isinstance(asked, (ast.Call, ast.Subscript)) and not any(isinstance(n, ast.Call) for n in ast.walk(asked)):
        raise ValueError(f"nothing is called in {ast.unparse(test)[:60]}")
    if isinstance(asked, (ast.BoolOp, ast.Compare)) or _compares(asked):
        raise ValueError(f"the expected value is inside {ast.unparse(test)[:60]}")
    question = {"expression": ast.unparse(asked), "before": before, "candidate": candidate}
    return Case(stdin="", question=question, expected=expected, rule=rule, tolerance=tolerance)


def _compares(asked: ast.expr) -> bool:
    name = getattr(getattr(asked, "func", None), "attr", getattr(getattr(asked, "func", None), "id", ""))
    inner = any(isinstance(node, (ast.Compare, ast.BoolOp)) for node in ast.walk(asked))
    return inner or name in ("isclose", "all", "any", "allclose", "array_equal")


def _compared(test: ast.Compare, tolerance: float) -> tuple[ast.expr, object, float]:
    if len(test.ops) != 1:
        raise ValueError(f"more than one comparison in {ast.unparse(test)[:60]}")
    left, right, operator = test.left, test.comparators[0], test.ops[0]
    if isinstance(operator, (ast.Lt, ast.LtE)) and getattr(getattr(left, "func", None), "id", "") == "abs":
        [difference] = left.args
        if isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub):
            return difference.left, _literal(difference.right), float(_literal(right))
    if isinstance(operator, ast.Is) and not isinstance(right, ast.Constant):
        raise ValueError(f"no value in {ast.unparse(test)[:60]}")
    if not isinstance(operator, (ast.Eq, ast.Is)):
        raise ValueError(f"neither == nor is in {ast.unparse(test)[:60]}")
    try:
        return left, _literal(right), tolerance
    except ValueError:
        return right, _literal(left), tolerance


def _literal(node: ast.expr) -> object:
    name = getattr(getattr(node, "func", None), "id", "")
    if name in ("set", "tuple", "frozenset", "list") and len(node.args) < 2 and not node.keywords:
        kind = {"set": set, "tuple": tuple, "frozenset": frozenset, "list": list}[name]
        return kind(*(_literal(one) for one in node.args))
    if name == "float" and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
        return float(str(node.args[0].value))
    return ast.literal_eval(node)
