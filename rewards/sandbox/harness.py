"""What runs in the sandbox beside the program: it executes the text, and answers questions about it.

Nothing here can be relied on once the program has begun, since the program can change all of it. That is no loss: it
holds no expected value, and whatever is written to the other side is a claim that is compared there.
"""

from __future__ import annotations

import atexit
import builtins
import json
import os
import sys
import threading
import traceback
import types
from typing import TextIO

from rewards.sandbox import values

READY = b"!"
"""Written when the program is about to begin: time counts from here."""


def run(source_fd: int, channel: int, *, asks: bool) -> None:
    """Execute the program as a script (`asks` False), or as a module that is then asked; never returns."""
    with open(source_fd, "rb") as file:
        source = file.read()
    _open_streams()
    os.write(channel, READY)
    code = 1
    try:
        code = _answer(source, channel) if asks else _script(source)
    finally:
        _leave(code)


def _open_streams() -> None:
    sys.stdin = sys.__stdin__ = _opened(0, "r", "surrogateescape")
    sys.stdout = sys.__stdout__ = _opened(1, "w", "surrogateescape")
    sys.stderr = sys.__stderr__ = _opened(2, "w", "backslashreplace")


def _opened(fd: int, mode: str, errors: str) -> TextIO:
    return open(fd, mode, encoding="utf-8", errors=errors, closefd=False)


def _execute(source: bytes, name: str) -> dict[str, object]:
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _script(source: bytes) -> int:
    # As the interpreter ends a script: its threads, its exit functions, its buffers.
    try:
        _execute(source, "__main__")
        code = 0
    except SystemExit as error:
        code = _exit_code(error.code)
    except BaseException:
        traceback.print_exc(limit=-5)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return code


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 255
    print(code, file=sys.stderr)
    return 1


def _leave(code: int) -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 1
    os._exit(code)


def _answer(source: bytes, channel: int) -> int:
    """One line of JSON for each line read: `{"value": ...}` or `{"error": text}`; the nonce goes before it."""
    names: dict[str, object] | None = None
    wrong = ""
    try:
        names = _execute(source, "program")
    except BaseException as error:
        wrong = _told(error)
    with open(channel, "rb", closefd=False) as questions:
        for line in questions:
            question = json.loads(line)
            claim = {"error": wrong} if names is None else _claim(names, question)
            claimed = f"{question['nonce']} {json.dumps(claim)}\n".encode("utf-8", "backslashreplace")
            while claimed:
                claimed = claimed[os.write(channel, claimed) :]
    return 0


def _claim(names: dict[str, object], question: dict[str, object]) -> dict[str, object]:
    try:
        return {"value": values.plain(_value(names, question))}
    except BaseException as error:
        return {"error": _told(error)}


def _value(names: dict[str, object], question: dict[str, object]) -> object:
    if "expression" in question:
        if question.get("candidate"):
            names["candidate"] = _function(names, str(question["candidate"]))
        if question.get("before"):
            exec(str(question["before"]), names)
        return eval(str(question["expression"]), names)
    arguments = values.read(str(question["arguments"]))
    return _function(names, str(question["call"]))(*arguments)


def _function(names: dict[str, object], name: str) -> object:
    if name in names:
        return names[name]
    if "Solution" in names:
        return getattr(names["Solution"](), name)
    raise NameError(f"the program defines no {name}")


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return "an exception that cannot be shown"
