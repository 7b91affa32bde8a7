"""What of a step is not raw work: our run beside vLLM and PyTorch alone, on the same prompts and lengths.

    python -m tests.bench.overhead                       # about 6 minutes on two cores
    python -m tests.bench.overhead --pairs 3 --steps 2 --json overhead.json
    python -m tests.bench.overhead train.packing=true    # settings of ours, as engine.main takes them

SmolLM2-135M in bfloat16, 4 prompts x 8 responses x 64 tokens a step, two threads, each part in processes of its own, in
turns, the first step of each left out. Raw training is `tests/bench/_raw.py`: every response with its own prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.origin import config_hash, git_version
from tests.bench._output import tell
from tests.bench.step import REPOSITORY, SMOLLM2
from tests.bench.trl import RESPONSES, THREADS, WARM_UP_STEPS, Plan, Step, plan_for, run_ours
from workers.process_settings import process_settings

TRACE = "uniform"
TRL = Path(__file__).with_name("trl.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Medians over the steps of all pairs."""

    step_s: float
    generate_s: float
    train_s: float
    """All that is not generating."""
    raw_generate_s: float
    raw_train_s: float
    overhead: float
    """What a step takes longer than both raw parts, as a share of them; below 0 where ours does less work."""
    rollout_efficiency: float
    training_efficiency: float
    eps: float
    """The raw parts over the step."""
    trl_eps: float | None
    """TRL's on the same lengths, by the ratio in trl.json; None without that file."""


def run_raw(plan: Plan, part: str, folder: Path) -> list[float]:
    """Seconds of each step, the first ones left out."""
    rollout, rows = plan.config.rollout, [prompt for prompt in plan.prompts for _ in range(RESPONSES)]
    a_step = len(plan.lengths[0])
    asked = {
        "model": plan.config.model.path,
        "threads": THREADS,
        "context_length": plan.config.model.context_length,
        "max_running": rollout.max_running,
        "kv_cache_gib": rollout.kv_cache_gib,
        "tokens_per_micro_batch": plan.config.train.tokens_per_micro_batch,
        "steps": [
            [(list(prompt.token_ids), length) for prompt, length in zip(rows[at : at + a_step], lengths, strict=True)]
            for at, lengths in zip(range(0, len(rows), a_step), plan.lengths, strict=True)
        ],
    }
    where = folder / "asked.json", folder / "told.json"
    where[0].write_text(json.dumps(asked))
    environment = {**os.environ, **process_settings(plan.config.team()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.bench._raw", part, *where]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr, env=environment)
    return json.loads(where[1].read_text())[WARM_UP_STEPS:]


def measured(ours: list[Step], generate: list[float], train: list[float], *, trl_ratio: float | None) -> Overhead:
    """`trl_ratio`: TRL's step over ours.

    >>> step = Step(trace="uniform", seconds=11.0, generate_s=2.0)
    >>> found = measured([step], [1.9], [8.1], trl_ratio=4.0)
    >>> round(found.overhead, 3), round(found.rollout_efficiency, 3), round(found.eps, 3), round(found.trl_eps, 3)
    (0.1, 0.95, 0.909, 0.227)
    """
    steps = [step for step in ours if step.trace == TRACE]
    step_s = statistics.median(step.seconds for step in steps)
    generate_s = statistics.median(step.generate_s for step in steps)
    train_s = statistics.median(step.train_s for step in steps)
    raw_generate_s, raw_train_s = statistics.median(generate), statistics.median(train)
    eps = (raw_generate_s + raw_train_s) / step_s
    return Overhead(
        step_s=step_s,
        generate_s=generate_s,
        train_s=train_s,
        raw_generate_s=raw_generate_s,
        raw_train_s=raw_train_s,
        overhead=1.0 / eps - 1.0,
        rollout_efficiency=raw_generate_s / generate_s,
        training_efficiency=raw_train_s / train_s,
        eps=eps,
        trl_eps=eps / trl_ratio if trl_ratio else None,
    )


def trl_ratio() -> float | None:
    """Of the last comparison that was written down."""
    if not TRL.exists():
        return None
    return next(one["ratio"] for one in json.loads(TRL.read_text())["traces"] if one["trace"] == TRACE)


def show(found: Overhead) -> None:
    table = Table(title="a step and its raw parts", title_justify="left")
    for heading in ("", "ours", "raw", "raw / ours"):
        table.add_column(heading, justify="right" if heading else "left")
    raw_s = found.raw_generate_s + found.raw_train_s
    for name, own, raw in (
        ("generate", found.generate_s, found.raw_generate_s),
        ("all else", found.train_s, found.raw_train_s),
        ("step", found.step_s, raw_s),
    ):
        table.add_row(name, f"{own:.2f} s", f"{raw:.2f} s", f"{raw / own:.3f}")
    Console(width=120).print(table)
    of_trl = "" if found.trl_eps is None else f", TRL's {found.trl_eps:.2f}"
    print(f"overhead {found.overhead:.1%}, eps {found.eps:.2f}{of_trl}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--pairs", type=int, default=2, help="of runs in turns")
    parser.add_argument("--steps", type=int, default=2, help="of each run, after one that warms up")
    parser.add_argument("overrides", nargs="*", help="settings of ours")
    asked = parser.parse_args()
    if not (REPOSITORY / SMOLLM2).exists():
        print(f"no model in {SMOLLM2} (see examples/smollm2)", file=sys.stderr)
        sys.exit(2)
    plan = plan_for(asked.steps, asked.overrides, names=[TRACE])
    ours, generate, train = [], [], []
    for _ in range(asked.pairs):
        with tempfile.TemporaryDirectory() as folder:
            ours += run_ours(plan, asked.overrides, Path(folder))
            generate += run_raw(plan, "generate", Path(folder))
            train += run_raw(plan, "train", Path(folder))
    found = measured(ours, generate, train, trl_ratio=trl_ratio())
    origin = {
        "command": " ".join(["python -m tests.bench.overhead", *sys.argv[1:]]),
        "git": git_version(), "config": config_hash(plan.config), "seed": plan.config.run.seed, "threads": THREADS,
        "pairs": asked.pairs, "steps": asked.steps,
    }  # fmt: skip
    raw = {"ours": [asdict(step) for step in ours], "raw_generate_s": generate, "raw_train_s": train}
    tell(origin | asdict(found) | raw, asked.json, lambda: show(found))


if __name__ == "__main__":
    main()
