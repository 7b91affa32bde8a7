"""How fast rows are read, checked and made into records, beside what plain JSON takes for the same file.

    python -m tests.bench.data                    # a table
    python -m tests.bench.data --json data.json   # the same as JSON; --json alone prints it
    python -m tests.bench.data --rows 100000

Every file has good rows of about the size that such rows have in the wild. `plain` is `json.loads` of each line, and
nothing else; the ratio says what reading, checking every value and making records costs. Each figure is the best of
three, of the CPU time of one process on one core: what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.data.base import RowKind
from engine.data.files import FilesData, _read_once
from engine.origin import git_version
from tests.bench._output import tell

REPEATS = 3
WORDS = ("the", "sum", "of", "two", "small", "numbers", "is", "what", "a", "policy", "learns", "größere", "später")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One file."""

    case: str
    rows: int
    bytes_per_row: float
    plain_rows_per_s: float
    rows_per_s: float
    stream_rows_per_s: float
    ratio: float
    """The time of reading as records, in times of plain JSON."""


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def question(chance: random.Random) -> dict[str, Any]:
    return {"prompt": text(chance, 40), "answer": str(chance.randrange(1000)), "level": 3}


def alpaca(chance: random.Random) -> dict[str, Any]:
    return {"instruction": text(chance, 12), "input": text(chance, 8), "output": text(chance, 90)}


def messages(chance: random.Random) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user" if turn % 2 == 0 else "assistant", "content": text(chance, 40)} for turn in range(6)
        ]
    }


def tools(chance: random.Random) -> dict[str, Any]:
    call = json.dumps({"name": "weather", "arguments": {"city": text(chance, 2)}})
    turns = [
        ("human", text(chance, 20)),
        ("function_call", call),
        ("observation", text(chance, 20)),
        ("gpt", text(chance, 40)),
    ]
    schema = [{"name": "weather", "description": text(random.Random(0), 20), "parameters": {"type": "object"}}]
    return {"conversations": [{"from": who, "value": said} for who, said in turns], "tools": json.dumps(schema)}


def preference(chance: random.Random) -> dict[str, Any]:
    asked = {"role": "user", "content": text(chance, 30)}
    answers = [{"role": "assistant", "content": f"{end} {text(chance, 80)}"} for end in ("good", "bad")]
    return {"chosen": [asked, answers[0]], "rejected": [asked, answers[1]]}


def document(chance: random.Random) -> dict[str, Any]:
    return {"text": text(chance, 300)}


CASES: dict[str, tuple[RowKind, Callable[[random.Random], dict[str, Any]]]] = {
    "questions": (RowKind.QUESTIONS, question),
    "alpaca": (RowKind.CONVERSATIONS, alpaca),
    "messages, 6 turns": (RowKind.CONVERSATIONS, messages),
    "sharegpt with tools": (RowKind.CONVERSATIONS, tools),
    "pairs of conversations": (RowKind.PREFERENCES, preference),
    "documents": (RowKind.DOCUMENTS, document),
}


def measure(case: str, rows: int, folder: Path) -> Measured:
    kind, make = CASES[case]
    chance = random.Random(0)
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(make(chance), ensure_ascii=False)}\n" for _ in range(rows)))
    data = FilesData(path=(str(path),), held_out=0)
    streamed = FilesData(path=(str(path),), held_out=0, streaming=True)
    # The head of a stream is read twice: that is a part of its price.
    plain_s, read_s, stream_s = (
        best_s(action)
        for action in (
            lambda: plain(path),
            lambda: whole(data, kind),
            lambda: streamed.stream(kind).take(rows),
        )
    )
    return Measured(
        case=case,
        rows=rows,
        bytes_per_row=path.stat().st_size / rows,
        plain_rows_per_s=rows / plain_s,
        rows_per_s=rows / read_s,
        stream_rows_per_s=rows / stream_s,
        ratio=read_s / plain_s,
    )


def plain(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def whole(data: FilesData, kind: RowKind) -> object:
    _read_once.cache_clear()
    return data.read(kind)


def best_s(action: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        gc.collect()
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return min(times)


def show(measured: Sequence[Measured]) -> None:
    table = Table(title="rows a second, read, checked and made into records", title_justify="left")
    for heading in ("", "bytes a row", "plain json", "records", "stream", "records / plain, time"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in measured:
        table.add_row(
            one.case,
            f"{one.bytes_per_row:,.0f}",
            f"{one.plain_rows_per_s:,.0f}",
            f"{one.rows_per_s:,.0f}",
            f"{one.stream_rows_per_s:,.0f}",
            f"{one.ratio:.1f}",
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--rows", type=int, default=20_000, help="of each file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = [measure(case, asked.rows, Path(folder)) for case in CASES]
    origin = {"command": "python -m tests.bench.data", "git": git_version(), "seed": 0}
    tell(origin | {"measured": [asdict(one) for one in measured]}, asked.json, lambda: show(measured))


if __name__ == "__main__":
    main()
