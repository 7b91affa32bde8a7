"""What the driver does for each rollout of a step, and what crosses processes for it.

    python -m tests.bench.data_path                          # a table
    python -m tests.bench.data_path --json data_path.json    # the same as JSON; --json alone prints it

Judged groups of 8 made from a seed; the driver's own functions, without workers. Microseconds a rollout, the best of
the repetitions; bytes as pickled.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.config import load_config
from engine.experience import advantages, assign
from engine.metrics import of_rollouts
from engine.origin import git_version
from engine.rollout_stream import Taken, TakenGroup
from rewards.score import Score
from tests.bench._output import tell
from workers.records import AlgorithmState, Group, Message, Prompt, Rollout, Span, Stop

SIBLINGS, PROMPT_TOKENS, MOST_TOKENS = 8, 200, 400
SIZES = (32, 256, 2048)
REPETITIONS = 7
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One size of a step."""

    command: str
    git: str
    seed: int
    rollouts: int
    figures_us: float
    """A rollout, as the following two: the step's metrics."""
    assign_us: float
    advantages_us: float
    driver_ms: float
    """A step, all three."""
    group_bytes: float
    """A rollout, as the following two: tokens and texts, which pass the driver by."""
    summary_bytes: float
    """What comes to the driver instead."""
    rows_bytes: float
    """What goes from the driver to the ranks."""


def a_group(draw: int, generator: np.random.Generator) -> Group:
    prompt = Prompt(
        id=f"p-{draw}",
        messages=(Message(role="user", content="What is 12+34?"),),
        token_ids=tuple(generator.integers(0, 50_000, PROMPT_TOKENS).tolist()),
        answer="46",
        row={},
        from_text=True,
    )
    lengths = generator.integers(1, MOST_TOKENS, SIBLINGS).tolist()
    rollouts = tuple(
        Rollout(
            prompt=prompt,
            draw=draw,
            sample=sample,
            text="x" * 4 * length,
            token_ids=generator.integers(0, 50_000, length, dtype=np.int32),
            logprobs=generator.normal(size=length).astype(np.float32),
            spans=(Span(start=0, end=length, sampled=True, version=1),),
            stop=Stop.END,
        )
        for sample, length in enumerate(lengths)
    )
    return Group(rollouts=rollouts, greedy=None, prompt_text="What is 12+34?")


def measure(num_rollouts: int) -> Measured:
    generator = np.random.default_rng(SEED)
    groups = [a_group(draw, generator) for draw in range(num_rollouts // SIBLINGS)]
    summaries = [
        group.summary([Score(total=float(generator.integers(2)), parts={}) for _ in group.rollouts], judging_s=0.0)
        for group in groups
    ]
    # A reference is only carried along.
    taken_groups = tuple(TakenGroup(summary=summary, group=None) for summary in summaries)
    taken = Taken(
        version=0,
        groups=taken_groups,
        dropped=Counter(),
        drawn=len(groups),
        carried=0,
        cut_tokens=0,
        passed_over=(),
        failures=(),
    )
    config, state = load_config([]), AlgorithmState(kl_coef=0.0)

    def dealt() -> object:
        return assign(taken_groups, config.algo, ranks=2, updates_per_step=1, horizon=MOST_TOKENS)

    batch = dealt()
    divergence = [np.zeros(len(own)) for own in batch.places]
    parts_s = [
        best_s(call)
        for call in (
            lambda: of_rollouts(taken),
            dealt,
            lambda: advantages(batch, config.algo, state, divergence=divergence),
        )
    ]
    figures_us, assign_us, advantages_us = (1e6 * seconds / num_rollouts for seconds in parts_s)
    return Measured(
        command="python -m tests.bench.data_path",
        git=git_version(),
        seed=SEED,
        rollouts=num_rollouts,
        figures_us=figures_us,
        assign_us=assign_us,
        advantages_us=advantages_us,
        driver_ms=1e3 * sum(parts_s),
        group_bytes=sum(len(pickle.dumps(group)) for group in groups) / num_rollouts,
        summary_bytes=sum(len(pickle.dumps(summary)) for summary in summaries) / num_rollouts,
        rows_bytes=sum(len(pickle.dumps(share)) for share in batch.shares) / num_rollouts,
    )


def best_s(call: Callable[[], object]) -> float:
    took_s = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        call()
        took_s.append(time.perf_counter() - began)
    return min(took_s)


def show(measured: Sequence[Measured]) -> None:
    table = Table(title="of the driver's work, by the rollouts of a step", title_justify="left")
    headings = ("rollouts", "figures us", "assign us", "advantages us", "step ms", "group B", "summary B", "rows B")
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in measured:
        us = (one.figures_us, one.assign_us, one.advantages_us, one.driver_ms)
        sizes = (one.group_bytes, one.summary_bytes, one.rows_bytes)
        table.add_row(str(one.rollouts), *(f"{value:.1f}" for value in us), *(f"{value:,.0f}" for value in sizes))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    asked = parser.parse_args()
    measured = [measure(size) for size in SIZES]
    tell([asdict(one) for one in measured], asked.json, lambda: show(measured))


if __name__ == "__main__":
    main()
