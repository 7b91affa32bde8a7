"""From `path/to/file.py:name` or `package.module:name` to a reward that can be called, or to a reason for people.

A `RewardSource` holds the file's own text, so a worker in another folder or on another node builds the same function.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import linecache
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, TracebackType

from rewards.beside import serve_beside, texts_beside
from rewards.score import RewardFunction
from rewards.spec import RewardSource, RewardSpec

TRACEBACK_FRAMES = 8
"""Of the reward's own code, the innermost."""
TRACEBACK_CHARACTERS = 4000
CALLERS = (__file__, *(str(Path(__file__).with_name(name)) for name in ("calling.py", "conventions.py", "returned.py")))
"""Frames of these, and those before them, are not the person's own."""


class RewardError(ValueError):
    """The reward cannot be used as configured: what is wrong and what to do, for people."""


def load_reward(spec: str) -> RewardFunction:
    """The function that `spec` names, checked as far as it can be without calling it.

    >>> load_reward("rewards.number:exact")(response="46", answer="46")
    1.0
    """
    return build_reward(read_reward(spec))


def read_reward(spec: str) -> RewardSource:
    """What `spec` points at, with the file's text if it is a file."""
    place, colon, name = spec.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise RewardError(
            f"reward.function is {spec!r}; write path/to/file.py:name or package.module:name, "
            "for instance rewards.gsm8k:correct"
        )
    if not (place.endswith(".py") or "/" in place):
        return RewardSource(spec=spec, file="", text="", name=name, beside={})
    file = Path(place).expanduser().resolve()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        wrong = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise RewardError(f"reward.function is {spec!r}: {file}: {wrong}; give an existing Python file") from error
    return RewardSource(spec=spec, file=str(file), text=text, name=name, beside=_beside(spec, file))


def _beside(spec: str, file: Path) -> dict[str, str]:
    try:
        return texts_beside(file)
    except (SyntaxError, OSError, UnicodeDecodeError) as error:
        raise RewardError(f"reward.function is {spec!r}: reading it and what it imports: {error}") from error


def build_reward(source: RewardSource) -> RewardFunction:
    """Import the source's module and take its function, or say why that cannot be."""
    place = source.spec.rpartition(":")[0]
    try:
        module = _module_from_text(source) if source.file else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # the user's own code: a script without a main guard may even exit
        if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
            raise RewardError(
                f"reward.function is {source.spec!r}: there is no module {error.name!r} on the import path; "
                f"install it, or name a file: path/to/file.py:{source.name}"
            ) from error
        raise RewardError(f"reward.function is {source.spec!r}: importing it raised\n{told(error)}") from error
    function = getattr(module, source.name, None)
    if not callable(function):
        raise RewardError(f"reward.function is {source.spec!r}: {_missing(module, source.name)}")
    _check_signature(function, source.spec)
    return function


def check_columns(spec: RewardSpec, row: Mapping[str, object]) -> None:
    """A name that both the configuration and the data use would leave in doubt which one the reward gets."""
    both = sorted(spec.arguments.keys() & row.keys())
    if both:
        raise RewardError(
            f"reward.arguments and the data both have {listed(both)}; rename the argument and the reward's parameter"
        )


def name_of(function: RewardFunction) -> str:
    return getattr(function, "__name__", type(function).__name__)


def told(error: BaseException) -> str:
    """The last lines of a traceback, from the user's own code on."""
    frames = list(_frames(error.__traceback__))
    ours = [index for index, frame in enumerate(frames) if frame.tb_frame.f_code.co_filename in CALLERS]
    theirs = frames[ours[-1] + 1 :] if ours else frames
    theirs = list(itertools.dropwhile(lambda frame: "importlib" in frame.tb_frame.f_code.co_filename, theirs))
    lines = traceback.format_exception(type(error), error, theirs[0] if theirs else None, limit=-TRACEBACK_FRAMES)
    return "".join(lines).strip()[-TRACEBACK_CHARACTERS:].encode("utf-8", "backslashreplace").decode()


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _module_from_text(source: RewardSource) -> ModuleType:
    file = Path(source.file)
    if twice := serve_beside(file.parent, source.beside):
        raise RewardError(
            f"reward.function is {source.spec!r}: another reward imports another {twice}; rename one of the two"
        )
    # Its own name: `math.py` must not become what everybody else imports as math.
    module = ModuleType(f"user_reward_{file.stem}")
    module.__file__ = source.file
    sys.modules[module.__name__] = module
    # Tracebacks show the lines that run, also where the file is not, or is another by now.
    linecache.cache[source.file] = (len(source.text), None, source.text.splitlines(keepends=True), source.file)
    exec(compile(source.text, source.file, "exec", dont_inherit=True), vars(module))
    return module


def _missing(module: ModuleType, name: str) -> str:
    functions = {
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    }
    if hasattr(module, name):
        wrong = f"{name} is {getattr(module, name)!r}, not a function"
    else:
        wrong = f"there is no {name} in it"
    return f"{wrong}; its functions are {listed(functions)}{nearest(name, functions)}"


def _check_signature(function: RewardFunction, spec: str) -> None:
    """Which convention they fit is seen where the settings are known (`rewards.conventions`)."""
    try:
        inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"reward.function is {spec!r}: its parameters cannot be read; "
            "write def name(response: str, answer: str, **row) -> float"
        ) from error


def keywords(signature: inspect.Signature) -> frozenset[str] | None:
    """The names that a function takes as keywords; None if it takes any."""
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def nearest(name: str, names: set[str] | frozenset[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
