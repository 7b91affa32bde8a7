"""How much faster rows are learned from packed than padded, siblings with their prompt once, and ranks in balance.

    python -m tests.bench.packing                       # tables
    python -m tests.bench.packing --json packing.json   # the same as JSON; --json alone prints it
    python -m tests.bench.packing --case pairs --repeats 5

Forward and backward passes of models of SmolLM2's shape with fewer layers (and as much less vocabulary), on rows whose
lengths are spread as those of LLaMA-Factory's demo sets, and on siblings behind one prompt. The ways take turns inside
one run, on one thread, in CPU time, so that whatever else the machine does falls on all of them; log-probs and
gradients are compared first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from engine.dealing import Siblings, WorkModel, deal
from engine.origin import git_version
from engine.sizes import ModelSizes
from tests.bench._output import tell
from workers.batches import collate_lessons, each_with_its_own_prompt, select
from workers.lessons import Example, Lesson, Part
from workers.micro_batches import micro_batches, one_by_one
from workers.model import TokenScorer, score_tokens
from workers.packing import attend_by_segment
from workers.records import Batch

SEED = 0
SHAPE = LlamaConfig(
    vocab_size=1024, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3,
    num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=True,
)  # fmt: skip
WIDE_SHAPE = LlamaConfig(
    vocab_size=6554, hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=4096, tie_word_embeddings=True,
)  # fmt: skip
"""4 of SmolLM2's 30 layers, and 4 / 30 of its vocabulary."""
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
class SiblingsCase:
    """Responses to one prompt, all of one length."""

    name: str
    prompt_tokens: int
    response_tokens: int
    siblings: int
    dtype: str


DTYPES = ("float32", "bfloat16")
SIBLINGS = tuple(
    SiblingsCase(name=f"siblings {prompt} + {n} x {response}", prompt_tokens=prompt, response_tokens=response,
                 siblings=n, dtype=dtype)
    for prompt, response, n in ((512, 128, 8), (128, 512, 8), (12, 4, 8))
    for dtype in DTYPES
)  # fmt: skip
RANKS = (2, 8, 64, 512)
SMOLLM2 = ModelSizes(
    layers=30, hidden=576, intermediate=1536, heads=9, key_value_heads=3, head_dimension=64, vocabulary=49152,
    tied_embeddings=True, positions=8192, parameters=134_515_008,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A prompt once, against the same packed rows with the prompt in each, and against padded rows."""

    case: str
    dtype: str
    tokens: int
    """Computed where the prompt is in each row."""
    shared_tokens: int
    ideal: float
    """The tokens of one over those of the other: what sharing could save if every token cost the same."""
    padded_s: float
    packed_s: float
    shared_s: float
    speedup: float
    """Shared over packed."""
    logprob_difference: float
    gradient_difference: float
    """Largest, over the largest gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How even ranks are when groups of eight are dealt to them, lengths spread lognormally."""

    ranks: int
    rows: int
    shares_prompts: bool
    max_over_mean: float
    repeated_prompts: float
    """Work that is done again because a group is on several ranks, as a share of all."""
    planning_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    case: str
    command: str
    tokens: int
    tokens_per_micro_batch: int
    padding_share: float
    """Of the padded way's positions."""
    packed_waste: float
    """Of the packed way's budget: what its passes leave empty, the last one aside."""
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
        tokens=sum(lengths),
        tokens_per_micro_batch=TOKENS_PER_MICRO_BATCH,
        padding_share=1.0 - sum(lengths) / positions,
        packed_waste=_waste([sum(lengths[row] for row in piece) for piece in _pieces(batch, packing=True)]),
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


def _waste(filled: Sequence[int]) -> float:
    """The last pass has what was left over."""
    full = sorted(filled)[1:]
    return 1.0 - sum(full) / (TOKENS_PER_MICRO_BATCH * len(full)) if full else 0.0


def _model(*, packing: bool, shape: LlamaConfig = SHAPE, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(SEED)
    # A model keeps the very config that it is made from, and `attend_by_segment` writes into it.
    model = AutoModelForCausalLM.from_config(deepcopy(shape), dtype=dtype, attn_implementation="sdpa")
    if packing:
        attend_by_segment(model)
    return model.train()


def _pieces(batch: Batch, *, packing: bool) -> list[tuple[int, ...]]:
    units = one_by_one(range(len(batch)))
    return micro_batches(batch, units, tokens_per_micro_batch=TOKENS_PER_MICRO_BATCH, packing=packing)


def _learn(model: PreTrainedModel, batch: Batch, *, packing: bool) -> float:
    """CPU seconds of all forward and backward passes."""
    start = time.process_time()
    for piece in _pieces(batch, packing=packing):
        _pass(model, select(batch, piece))
    return time.process_time() - start


def _pass(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Log-probs; gradients are added to the model's."""
    logprobs_BT = score_tokens(TokenScorer(model), batch, temperature=1.0, device=torch.device("cpu")).logprobs_BT
    logprobs_BT.sum().backward()
    return logprobs_BT.detach()


# ----------------------------------------------------------------------------- siblings


def measure_siblings(case: SiblingsCase, repeats: int) -> Shared:
    shared = siblings_of(case)
    ways = {
        "padded": (_model(packing=False, shape=WIDE_SHAPE, dtype=getattr(torch, case.dtype)), shared),
        "packed": (_model(packing=True, shape=WIDE_SHAPE, dtype=getattr(torch, case.dtype)),
                   each_with_its_own_prompt(shared)),
    }  # fmt: skip
    ways["shared"] = (ways["packed"][0], shared)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    said: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(repeats + 1):
        for way, (model, batch) in ways.items():
            model.zero_grad()
            start = time.process_time()
            logprobs_BT = _pass(model, batch)
            seconds[way].append(time.process_time() - start)
            said[way] = logprobs_BT, torch.cat([p.grad.flatten().float() for p in model.parameters()])
    (one, of_one), (other, of_other) = said["shared"], said["packed"]
    best = {way: min(turns[1:]) for way, turns in seconds.items()}
    tokens = sum(shared.lengths())
    shared_tokens = case.prompt_tokens + case.siblings * case.response_tokens
    return Shared(
        case=case.name,
        dtype=case.dtype,
        tokens=tokens,
        shared_tokens=shared_tokens,
        ideal=tokens / shared_tokens,
        padded_s=best["padded"],
        packed_s=best["packed"],
        shared_s=best["shared"],
        speedup=best["packed"] / best["shared"],
        logprob_difference=float((one - other).abs().max()),
        gradient_difference=float((of_one - of_other).abs().max() / of_other.abs().max()),
    )


def siblings_of(case: SiblingsCase) -> Batch:
    random = np.random.default_rng(SEED)

    def text(tokens: int) -> tuple[int, ...]:
        return tuple(random.integers(5, WIDE_SHAPE.vocab_size, tokens).tolist())

    prompt, mask = text(case.prompt_tokens), (True,) * case.response_tokens
    lessons = []
    for number in range(case.siblings):
        tokens = (*prompt, *text(case.response_tokens))
        example = Example(part=Part.TEXT, token_ids=tokens, prompt_length=case.prompt_tokens, mask=mask)
        lessons.append(Lesson(id=str(number), examples=(example,), margin=0.0))
    return collate_lessons(lessons, ()).batch


# ----------------------------------------------------------------------------- ranks


def measure_balance(ranks: int, *, shares_prompts: bool) -> Balance:
    """Sixteen rows a rank: two groups of eight."""
    work, random = WorkModel.of(SMOLLM2, shares_prompts=shares_prompts), np.random.default_rng(SEED)
    families = []
    for _ in range(2 * ranks):
        prompt = int(random.integers(50, 500))
        lengths = np.exp(random.normal(5.0, 0.8, 8)).clip(1, 1024).astype(int)
        rows = tuple(work.row(prompt, int(length)) for length in lengths)
        families.append(Siblings(prompt=work.prompt(prompt), rows=rows))
    start = time.perf_counter()
    dealt = deal(families, ranks)
    planning_s = time.perf_counter() - start
    loads = [
        sum(families[family].rows[row] for family, row in rows)
        + sum(families[family].prompt for family in {family for family, _ in rows})
        for rows in dealt
    ]
    once = sum(family.prompt + sum(family.rows) for family in families)
    return Balance(
        ranks=ranks,
        rows=16 * ranks,
        shares_prompts=shares_prompts,
        max_over_mean=max(loads) * ranks / sum(loads),
        repeated_prompts=sum(loads) / once - 1.0,
        planning_ms=planning_s * 1e3,
    )


def show(rows: Sequence[Measured], siblings: Sequence[Shared], balance: Sequence[Balance]) -> None:
    columns = ("", "tokens", "padding", "left empty", "passes", "padded s", "packed s", "speed-up")
    table = _table("one optimizer step's rows, padded and packed", columns)
    for one in rows:
        passes = f"{one.padded_passes} to {one.packed_passes}"
        seconds = (f"{one.padded_s:.2f}", f"{one.packed_s:.2f}", f"{one.speedup:.2f}")
        table.add_row(
            one.case, f"{one.tokens:,}", f"{one.padding_share:.0%}", f"{one.packed_waste:.1%}", passes, *seconds
        )
    columns = ("", "", "padded s", "packed s", "shared s", "speed-up", "ideal", "log-probs", "gradients")
    other = _table("siblings, their prompt once", columns)
    for own in siblings:
        seconds = (f"{own.padded_s:.3f}", f"{own.packed_s:.3f}", f"{own.shared_s:.3f}", f"{own.speedup:.2f}")
        differences = (f"{own.logprob_difference:.0e}", f"{own.gradient_difference:.0e}")
        other.add_row(own.case, own.dtype, *seconds, f"{own.ideal:.2f}", *differences)
    columns = ("", "rows", "max / mean", "prompts again", "planned in ms")
    ranks = _table("work dealt to ranks", columns)
    for dealt in balance:
        name = f"{dealt.ranks} ranks, {'prompts once' if dealt.shares_prompts else 'rows alone'}"
        ranks.add_row(
            name, str(dealt.rows), f"{dealt.max_over_mean:.3f}", f"{dealt.repeated_prompts:.1%}",
            f"{dealt.planning_ms:.1f}",
        )  # fmt: skip
    for shown in (table, other, ranks):
        if shown.row_count:
            Console(width=120).print(shown)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="right" if heading else "left")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--case", metavar="WORD", default="", help="those whose name holds this (default: all)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the siblings: one of them (default: both)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way, after one that warms up")
    asked = parser.parse_args()
    cases = [case for case in CASES if asked.case in case.name]
    siblings = [case for case in SIBLINGS if asked.case in case.name and asked.dtype in (None, case.dtype)]
    ranks = RANKS if asked.case in "ranks" else ()
    if not (cases or siblings or ranks):
        names = [case.name for case in (*CASES, *SIBLINGS)]
        parser.error(f"--case is {asked.case}: there are {', '.join(dict.fromkeys(names))}, ranks")
    if asked.repeats < 1:
        parser.error(f"--repeats is {asked.repeats}: at least 1")
    torch.set_num_threads(1)
    measured, shared = [], []
    for case in cases:
        print(f"{case.name} ...", file=sys.stderr)
        measured.append(measure(case, asked.repeats))
    for case in siblings:
        print(f"{case.name} {case.dtype} ...", file=sys.stderr)
        shared.append(measure_siblings(case, asked.repeats))
    balance = [measure_balance(count, shares_prompts=shares) for count in ranks for shares in (False, True)]
    found = {
        "git": git_version(), "seed": SEED, "rows": [asdict(one) for one in measured],
        "siblings": [asdict(one) for one in shared], "ranks": [asdict(one) for one in balance],
    }  # fmt: skip
    tell(found, asked.json, lambda: show(measured, shared, balance))


if __name__ == "__main__":
    main()
