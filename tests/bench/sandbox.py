"""How many programs the sandbox runs in a second, and whether hostile ones get anything.

    python -m tests.bench.sandbox                       # a table
    python -m tests.bench.sandbox --json sandbox.json   # the same as JSON; --json alone prints it
    python -m tests.bench.sandbox --hostile 10000

Speed is that of honest programs alone, each a fresh process inside all walls, by two slots: from the text to the
compared output, with `passes` being called by as many threads as there are slots.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.origin import git_version
from rewards.code import passes
from tests.bench._hostile import trial
from tests.bench._output import tell

SLOTS = 2


def speed(programs: int) -> dict[str, Any]:
    """Honest programs only."""

    def one(number: int) -> float:
        started = time.perf_counter()
        tests = {"inputs": [f"{number}\n"], "outputs": [str(number + 1)]}
        judged = passes(f"```python\nprint(int(input()) + 1)  # {number}\n```", json.dumps(tests), slots=SLOTS)
        if judged != {"passed": 1.0}:
            raise RuntimeError(f"an honest program was judged {judged}")
        return time.perf_counter() - started

    with ThreadPoolExecutor(SLOTS) as threads:
        list(threads.map(one, range(20)))
        started = time.perf_counter()
        took_s = sorted(threads.map(one, range(programs)))
        whole_s = time.perf_counter() - started
    quantiles = {f"p{share}_ms": round(1000 * took_s[programs * share // 100], 2) for share in (50, 95, 99)}
    return {"programs": programs, "programs_per_s": round(programs / whole_s, 1)} | quantiles


def show(measured: dict[str, Any]) -> None:
    fast, found = measured["speed"], measured["hostile"]
    table = Table(title="the sandbox", title_justify="left", show_header=False)
    rows = {
        "honest programs a second": fast["programs_per_s"],
        "p50, p95, p99 ms": ", ".join(str(fast[name]) for name in ("p50_ms", "p95_ms", "p99_ms")),
        "hostile programs tried": found["programs"],
        "rewarded": found["rewarded"],
        "escaped": found["escaped"],
        "honest programs between them": found["honest"],
        "mis-scored": found["honest_wrong"],
        "left behind": found["left_behind"] or "nothing",
        "walls": ", ".join(found["layers"]),
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--programs", type=int, default=1000, help="honest ones, for the speed")
    parser.add_argument("--hostile", type=int, default=600, help="with half as many honest ones between them")
    asked = parser.parse_args()
    origin = {"command": "python -m tests.bench.sandbox", "git": git_version(), "seed": 0}
    measured = origin | {"speed": speed(asked.programs), "hostile": trial(asked.hostile, asked.hostile // 2)}
    tell(measured, asked.json, lambda: show(measured))


if __name__ == "__main__":
    main()
