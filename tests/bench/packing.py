"""How much faster rows are learned from packed than padded, forward and backward.

    python -m tests.bench.packing                       # a table
    python -m tests.bench.packing --json packing.json   # the same as JSON; --json alone prints it
    python -m tests.bench.packing --case pairs --repeats 5

A model of SmolLM2's shape, made small, on rows whose lengths are spread as those of LLaMA-Factory's demo sets. The two
ways take turns inside one run, on one thread, in CPU time, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from engine.origin import git_version
from tests.bench._output import tell
from workers.batches import collate_lessons, cut, select
from workers.lessons import Example, Lesson, Part
from workers.model import TokenScorer, score_tokens
from workers.records import Batch
from workers.segments import attend_by_segment

SEED = 0
SHAPE = LlamaConfig(
    vocab_size=1024, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3,
    num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=True,
)  # fmt: skip
TOKENS_PER_MICRO_BATCH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows of one optimizer step; the logarithm of their lengths is spread normally."""

    name: str
    rows: int
    median: int
    spread: float
    longest: int


CASES = (
    Case(name="instructions (alpaca)", rows=64, median=116, spread=0.94, longest=719),
    Case(name="pairs (dpo)", rows=24, median=528, spread=0.89, longest=2048),
    Case(name="short answers", rows=256, median=20, spread=0.5, longest=64),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    case: str
    command: str
    git: str
    seed: int
    tokens: int
    tokens_per_micro_batch: int
    padding_share: float
    """Of the padded way's positions."""
    padded_passes: int
    packed_passes: int
    padded_s: float
    packed_s: float
    """CPU seconds of one thread for all rows, the least disturbed turn: of this machine."""
    speedup: float


def measure(case: Case, repeats: int) -> Measured:
    batch = rows_of(case)
    padded, packed = _model(packing=False), _model(packing=True)
    turns = []
    for _ in range(repeats + 1):
        turns.append((_learn(padded, batch, packing=False), _learn(packed, batch, packing=True)))
    # The first turn warms up.
    turns = turns[1:]
    lengths = batch.lengths()
    side_by_side = _pieces(batch, packing=False)
    positions = sum(len(piece) * max(lengths[row] for row in piece) for piece in side_by_side)
    return Measured(
        case=case.name,
        command=f"python -m tests.bench.packing --case '{case.name}' --repeats {repeats}",
        git=git_version(),
        seed=SEED,
        tokens=sum(lengths),
        tokens_per_micro_batch=TOKENS_PER_MICRO_BATCH,
        padding_share=1.0 - sum(lengths) / positions,
        padded_passes=len(side_by_side),
        packed_passes=len(_pieces(batch, packing=True)),
        padded_s=min(slow for slow, _ in turns),
        packed_s=min(quick for _, quick in turns),
        speedup=min(slow for slow, _ in turns) / min(quick for _, quick in turns),
    )


def rows_of(case: Case) -> Batch:
    """Made-up texts; the second half of each is trained on."""
    random = np.random.default_rng(SEED)
    lengths = np.exp(random.normal(np.log(case.median), case.spread, case.rows)).clip(8, case.longest).astype(int)
    lessons = []
    for number, length in enumerate(lengths.tolist()):
        tokens = tuple(random.integers(5, SHAPE.vocab_size, length).tolist())
        mask = (True,) * (length // 2)
        example = Example(part=Part.TEXT, token_ids=tokens, prompt_length=length - len(mask), mask=mask)
        lessons.append(Lesson(id=str(number), examples=(example,), margin=0.0))
    return collate_lessons(lessons, ()).batch


def _model(*, packing: bool) -> PreTrainedModel:
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(SHAPE, dtype=torch.float32, attn_implementation="sdpa")
    if packing:
        attend_by_segment(model)
    return model.train()


def _pieces(batch: Batch, *, packing: bool) -> tuple[tuple[int, ...], ...]:
    units = [(length,) for length in batch.lengths()]
    return cut(units, tokens_per_micro_batch=TOKENS_PER_MICRO_BATCH, packing=packing)


def _learn(model: PreTrainedModel, batch: Batch, *, packing: bool) -> float:
    """CPU seconds of all forward and backward passes."""
    scorer, cpu = TokenScorer(model), torch.device("cpu")
    start = time.process_time()
    for piece in _pieces(batch, packing=packing):
        score_tokens(scorer, select(batch, piece), temperature=1.0, device=cpu).logprobs_BT.sum().backward()
    return time.process_time() - start


def show(measured: Sequence[Measured]) -> None:
    table = Table(title="one optimizer step's rows, padded and packed", title_justify="left")
    for heading in ("", "tokens", "padding", "passes", "padded s", "packed s", "speed-up"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in measured:
        passes = f"{one.padded_passes} to {one.packed_passes}"
        seconds = (f"{one.padded_s:.2f}", f"{one.packed_s:.2f}")
        table.add_row(one.case, f"{one.tokens:,}", f"{one.padding_share:.0%}", passes, *seconds, f"{one.speedup:.2f}")
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--case", metavar="WORD", default="", help="those whose name holds this (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way, after one that warms up")
    asked = parser.parse_args()
    cases = [case for case in CASES if asked.case in case.name]
    if not cases:
        parser.error(f"--case is {asked.case}: there are {', '.join(case.name for case in CASES)}")
    if asked.repeats < 1:
        parser.error(f"--repeats is {asked.repeats}: at least 1")
    torch.set_num_threads(1)
    measured = []
    for case in cases:
        print(f"{case.name} ...", file=sys.stderr)
        measured.append(measure(case, asked.repeats))
    tell([asdict(one) for one in measured], asked.json, lambda: show(measured))


if __name__ == "__main__":
    main()
