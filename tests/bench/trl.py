"""Trained tokens a second, beside TRL's GRPOTrainer with transformers' generation.

    python -m tests.bench.trl                              # about 12 minutes on two cores
    python -m tests.bench.trl --pairs 3 --steps 2 --json trl.json
    python -m tests.bench.trl train.packing=true           # settings of ours, as engine.main takes them

The same model (SmolLM2-135M in bfloat16), the same prompts in the same order, 4 a step with 8 responses each, responses
of the same lengths, the same optimizer; both with two threads, in turns, each in processes of its own, whose start and
first step are left out. The gate: both read the same prompt tokens and wrote as many tokens as they were told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.config import Config, load_config
from engine.origin import config_hash, git_version
from engine.shuffle import Shuffle
from engine.tasks import prepare_online
from tests.bench._forced_lengths import LENGTHS_ENV, lognormal
from tests.bench._output import tell
from tests.bench._trl_environment import environment
from tests.bench.step import REPOSITORY, SMOLLM2
from workers.records import Prompt

PROMPTS, RESPONSES, MOST_TOKENS, THREADS = 4, 8, 128, 2
UNIFORM_TOKENS, SIGMA = 64, 0.8
TRACES = {"uniform": None, "lognormal, 2% clipped": 0.02, "lognormal, 20% clipped": 0.20}
WARM_UP_STEPS = 1
OURS = (
    f"model=smollm2-135m model.path={SMOLLM2} model.precision=bfloat16 model.context_length=512 "
    "data=reasoning_gym data.task=gsm_symbolic data.held_out=0 reward.function=tests/bench/_trl/reward.py:digits "
    "algo=grpo algo.kl_coef=0 algo.aggregation=token-mean train.learning_rate=1e-6 train.warmup_updates=0 "
    # All rows in one pass: what a pass costs beside its products is paid once.
    "train.tokens_per_micro_batch=4096 "
    f"rollout.prompts_per_step={PROMPTS} rollout.responses_per_prompt={RESPONSES} "
    f"rollout.max_response_tokens={MOST_TOKENS} cluster.threads_per_worker={THREADS} evaluation.prompts=0 "
    "run.tensorboard=false run.show_responses_every_steps=0 run.keep_rollouts_every_steps=0 run.name=ours"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What both sides are told."""

    traces: tuple[str, ...]
    """Of each step; "" for those that warm up."""
    lengths: tuple[tuple[int, ...], ...]
    """Of each step: its responses, sibling by sibling."""
    prompts: tuple[Prompt, ...]
    """In the order in which ours are drawn."""
    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of one side."""

    trace: str
    seconds: float
    generate_s: float

    @property
    def train_s(self) -> float:
        """All the rest: rewards, forward and backward passes, the optimizer, weights for the engine."""
        return self.seconds - self.generate_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A trace, both sides: medians over its steps in all pairs."""

    trace: str
    tokens: int
    """Of the responses of a step, which are trained on."""
    prompt_tokens: int
    """Mean of a prompt."""
    ours_s: float
    trl_s: float
    ours_generate_s: float
    trl_generate_s: float
    ours_tokens_per_s: float
    trl_tokens_per_s: float
    ratio: float
    generate_ratio: float
    train_ratio: float
    ratio_with_our_generation: float
    """Of a TRL that generates as fast as ours: what of `ratio` is not vLLM's."""


def plan_for(steps: int, overrides: Sequence[str], *, names: Sequence[str] = tuple(TRACES)) -> Plan:
    """`steps` of each trace, after one that warms up."""
    traces = ["", *(name for name in names for _ in range(steps))]
    config = load_config([*OURS, f"data.rows={PROMPTS * len(traces)}", f"run.steps={len(traces)}", *overrides])
    task = prepare_online(config)
    shuffle = Shuffle(num_rows=len(task.prompts), seed=config.run.seed)
    return Plan(
        traces=tuple(traces),
        lengths=tuple(_lengths(TRACES.get(name), step) for step, name in enumerate(traces)),
        prompts=tuple(task.prompts[shuffle.row(draw)] for draw in range(PROMPTS * len(traces))),
        config=config,
    )


def _lengths(clipped: float | None, step: int) -> tuple[int, ...]:
    count = PROMPTS * RESPONSES
    if clipped is None:
        return (UNIFORM_TOKENS,) * count
    return tuple(lognormal(count, sigma=SIGMA, clipped=clipped, most=MOST_TOKENS, seed=step))


def run_ours(plan: Plan, overrides: Sequence[str], folder: Path) -> list[Step]:
    by_draw = [own[at : at + RESPONSES] for own in plan.lengths for at in range(0, len(own), RESPONSES)]
    lengths = folder / "lengths.json"
    lengths.write_text(json.dumps(by_draw))
    steps = len(plan.traces)
    told = [*OURS, f"data.rows={PROMPTS * steps}", f"run.steps={steps}", f"run.folder={folder}", *overrides]
    command = [sys.executable, "-m", "tests.bench._forced_lengths", *told, "run.resume=never"]
    subprocess.run(
        command, cwd=REPOSITORY, check=True, stdout=sys.stderr, env={**os.environ, LENGTHS_ENV: str(lengths)}
    )
    rows = [json.loads(line) for line in (folder / "ours" / "metrics.jsonl").read_text().splitlines()]
    for row, wanted in zip(rows, plan.lengths, strict=True):
        written = round(row["response_length/mean"] * len(wanted))
        assert (written, row["response_length/max"]) == (sum(wanted), max(wanted)), "ours wrote other lengths"
        assert row["skipped_updates"] == 0
    return [
        Step(trace=trace, seconds=row["time/step_s"], generate_s=row["time/generate_s"])
        for trace, row in zip(plan.traces, rows, strict=True)
    ]


def run_trl(plan: Plan, python: Path, *, rows_per_pass: int, master_weights: bool, folder: Path) -> list[Step]:
    train = plan.config.train
    asked = {
        "model": str(Path(plan.config.model.path).resolve()),
        "folder": str(folder / "trl"),
        "prompts": [[{"role": turn.role, "content": turn.content} for turn in own.messages] for own in plan.prompts],
        "lengths": plan.lengths,
        "max_response_tokens": MOST_TOKENS,
        "responses_per_prompt": RESPONSES,
        "rows_per_pass": rows_per_pass,
        "master_weights": master_weights,
        "threads": THREADS,
        "seed": plan.config.run.seed,
        "learning_rate": train.learning_rate,
        "betas": list(train.betas),
        "eps": train.eps,
        "max_grad_norm": train.max_grad_norm,
    }
    where = folder / "asked.json", folder / "told.json"
    where[0].write_text(json.dumps(asked))
    offline = {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    command = [python, Path(__file__).parent / "_trl" / "peer.py", *where]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr, env={**os.environ, **offline})
    told = json.loads(where[1].read_text())
    _check_peer(told, plan)
    return [
        Step(trace=trace, seconds=step, generate_s=generate)
        for trace, step, generate in zip(plan.traces, told["step_s"], told["generate_s"], strict=True)
    ]


def _check_peer(told: dict[str, list[list[object]]], plan: Plan) -> None:
    """Raises AssertionError where TRL did other work than it was told."""
    assert told["lengths"] == [list(own) for own in plan.lengths], "TRL wrote other lengths"
    wanted = [list(prompt.token_ids) for prompt in plan.prompts for _ in range(RESPONSES)]
    assert [own for step in told["prompts"] for own in step] == wanted, "TRL read other prompts"


def compared(trace: str, ours: Sequence[Step], trl: Sequence[Step], plan: Plan) -> Compared:
    def median(steps: Sequence[Step], name: str) -> float:
        return statistics.median(getattr(step, name) for step in steps if step.trace == trace)

    tokens = sum(plan.lengths[plan.traces.index(trace)])
    own_s, trl_s = median(ours, "seconds"), median(trl, "seconds")
    own_generate_s, trl_generate_s = median(ours, "generate_s"), median(trl, "generate_s")
    own_train_s, trl_train_s = median(ours, "train_s"), median(trl, "train_s")
    return Compared(
        trace=trace,
        tokens=tokens,
        prompt_tokens=round(statistics.fmean(len(prompt.token_ids) for prompt in plan.prompts)),
        ours_s=own_s,
        trl_s=trl_s,
        ours_generate_s=own_generate_s,
        trl_generate_s=trl_generate_s,
        ours_tokens_per_s=tokens / own_s,
        trl_tokens_per_s=tokens / trl_s,
        ratio=trl_s / own_s,
        generate_ratio=trl_generate_s / own_generate_s,
        train_ratio=trl_train_s / own_train_s,
        ratio_with_our_generation=(own_generate_s + trl_train_s) / own_s,
    )


def show(found: Sequence[Compared]) -> None:
    table = Table(title="a step of 4 prompts x 8 responses: ours beside TRL", title_justify="left")
    for heading in ("lengths", "tokens", "ours", "TRL", "tokens/s", "generate", "train", "all", "less vLLM's part"):
        table.add_column(heading, justify="left" if heading == "lengths" else "right")
    for one in found:
        table.add_row(
            one.trace, f"{one.tokens:,}", f"{one.ours_s:.1f} s", f"{one.trl_s:.1f} s",
            f"{one.ours_tokens_per_s:.0f} / {one.trl_tokens_per_s:.0f}",
            *(f"{ratio:.2f}x" for ratio in (one.generate_ratio, one.train_ratio, one.ratio)),
            f"{one.ratio_with_our_generation:.2f}x",
        )  # fmt: skip
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--pairs", type=int, default=2, help="of runs in turns")
    parser.add_argument("--steps", type=int, default=1, help="of each trace in each run")
    parser.add_argument("--trace", choices=list(TRACES), action="append", help="one of them, or several (default: all)")
    parser.add_argument("--trl-rows", type=int, default=8, choices=[4, 8, 16, 32], help="TRL's responses a pass")
    parser.add_argument(
        "--trl-master-weights", action="store_true", help="TRL with float32 weights under autocast, as ours keeps them"
    )
    parser.add_argument("overrides", nargs="*", help="settings of ours")
    asked = parser.parse_args()
    if not (REPOSITORY / SMOLLM2).exists():
        print(f"no model in {SMOLLM2} (see examples/smollm2)", file=sys.stderr)
        sys.exit(2)
    names = asked.trace or list(TRACES)
    python = environment(REPOSITORY / "build" / "bench-trl")
    plan = plan_for(asked.steps, asked.overrides, names=names)
    ours, trl = [], []
    for _ in range(asked.pairs):
        with tempfile.TemporaryDirectory() as folder:
            ours += run_ours(plan, asked.overrides, Path(folder))
            trl += run_trl(
                plan, python, rows_per_pass=asked.trl_rows, master_weights=asked.trl_master_weights, folder=Path(folder)
            )
    found = [compared(trace, ours, trl, plan) for trace in names]
    origin = {
        "command": " ".join(["python -m tests.bench.trl", *sys.argv[1:]]),
        "git": git_version(), "config": config_hash(plan.config), "seed": plan.config.run.seed, "threads": THREADS,
        "pairs": asked.pairs, "steps": asked.steps, "trl_rows": asked.trl_rows,
        "trl_master_weights": asked.trl_master_weights,
    }  # fmt: skip
    steps = {"ours": [asdict(step) for step in ours], "trl": [asdict(step) for step in trl]}
    tell(origin | {"traces": [asdict(one) for one in found], "steps": steps}, asked.json, lambda: show(found))


if __name__ == "__main__":
    main()
