"""How often the judge of mathematics is wrong, and how fast it is, beside math-verify on the very same pairs.

    python -m tests.bench.math_answers                        # a table
    python -m tests.bench.math_answers --json math.json       # the same as JSON; --json alone prints it
    python -m tests.bench.math_answers --pairs 600

The pairs are made from a seed (`tests/bench/_math_pairs.py`): half are the same answer written in two ways, half differ
a little. Each judge is asked in both directions, so `asymmetric` counts pairs whose verdict depends on which side is
the reference. math-verify runs in a process of its own with a limit on memory and time, and is asked its usual way:
both sides boxed, its own time limits on. A verdict that it does not give counts as "different".
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from engine.origin import git_version
from rewards.math import correct
from tests.bench._math_pairs import FORMS, Pair, pairs
from tests.bench._output import tell

MEMORY_BYTES = 4 << 30
LIMIT_S = 3600
Judge = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One judge on the pairs of one form, or on all."""

    judge: str
    form: str
    pairs: int
    false_positives: int
    false_negatives: int
    asymmetric: int
    verdicts_per_s: float


def ours(reference: str, response: str) -> bool:
    return correct(rf"\boxed{{{response}}}", reference) == {"correct": 1.0}


def math_verify(reference: str, response: str) -> bool:
    from math_verify import parse, verify

    gold, answer = (parse(rf"$\boxed{{{text}}}$") for text in (reference, response))
    return bool(verify(gold, answer))


def judged(judge: Judge, made: Sequence[Pair]) -> list[tuple[bool, bool, float]]:
    """Both verdicts on each pair, and the seconds they took."""
    verdicts = []
    for pair in made:
        start = time.perf_counter()
        both = judge(pair.reference, pair.response), judge(pair.response, pair.reference)
        verdicts.append((*both, time.perf_counter() - start))
    return verdicts


def judged_apart(made: Sequence[Pair]) -> list[tuple[bool, bool, float]]:
    """By math-verify, in a process with limits."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.math_answers", "--as-math-verify"],
        input=json.dumps([asdict(pair) for pair in made]),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES)),
    )
    return [tuple(verdict) for verdict in json.loads(done.stdout.splitlines()[-1])]


def counted(judge: str, form: str, made: Sequence[Pair], verdicts: Sequence[tuple[bool, bool, float]]) -> Measured:
    chosen = [(p, v) for p, v in zip(made, verdicts, strict=True) if form in ("all", p.form)]
    return Measured(
        judge=judge,
        form=form,
        pairs=len(chosen),
        false_positives=sum(not pair.same and (there or back) for pair, (there, back, _) in chosen),
        false_negatives=sum(pair.same and not (there and back) for pair, (there, back, _) in chosen),
        asymmetric=sum(there != back for _, (there, back, _) in chosen),
        verdicts_per_s=2 * len(chosen) / sum(seconds for _, (_, _, seconds) in chosen),
    )


def show(measured: Sequence[Measured]) -> None:
    table = Table("judge", "form", "pairs", "false positives", "false negatives", "asymmetric", "verdicts/s")
    for row in measured:
        counts = (row.pairs, row.false_positives, row.false_negatives, row.asymmetric)
        table.add_row(row.judge, row.form, *map(str, counts), f"{row.verdicts_per_s:,.0f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", help="print JSON, or write it into this file")
    parser.add_argument("--pairs", type=int, default=4800, help="half of them the same, half not")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-math-verify", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_math_verify:
        print(json.dumps(judged(math_verify, [Pair(**pair) for pair in json.load(sys.stdin)])))
        return
    made = pairs(arguments.pairs // 2, seed=arguments.seed)
    verdicts = {"ours": judged(ours, made), "math-verify": judged_apart(made)}
    rows = [counted(judge, form, made, said) for form in (*FORMS, "all") for judge, said in verdicts.items()]
    origin = {"command": "python -m tests.bench.math_answers", "git": git_version(), "seed": arguments.seed}
    report = origin | {"measured": [asdict(row) for row in rows]}
    tell(report, arguments.json, lambda: show(rows))


if __name__ == "__main__":
    main()
