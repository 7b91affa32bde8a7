"""How much memory the log-probs of a batch take, and whether saving it takes time.

    python -m tests.bench.memory                       # a table
    python -m tests.bench.memory --json memory.json    # the same as JSON; --json alone prints it
    python -m tests.bench.memory --tokens 2048 --pairs 3 --dtype float32

Each figure is of a process of its own, from the hidden states of a batch to its log-probs and entropies, and back to
the gradients of both the hidden states and the head. Memory is what the pass adds at its peak beside the gradients that
it hands out (every way must make those), over the size of the batch's logits in float32. `whole` makes all logits at
once, as most trainers do; the two take turns, and their log-probs and gradients are compared first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from engine.origin import git_version
from tests.bench._output import tell
from workers.linear_logprobs import Term, linear_logprobs

SEED, THREADS, TEMPERATURE = 0, 1, 1.0
MIB = 1 << 20
CHECKED_TOKENS = 300
DTYPES = ("float32", "bfloat16")
MOST_DIFFERENCE = 1e-5
"""Of log-probs in float32; of gradients, relative to the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What reads the hidden states."""

    name: str
    vocabulary: int
    hidden: int


HEADS = (
    Head(name="SmolLM2-135M", vocabulary=49_152, hidden=576),
    Head(name="Qwen2.5-0.5B", vocabulary=151_936, hidden=896),
)
Way = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""[N, H] hidden states, [V, H] weights and [N] targets to log-probs and entropies."""


def in_pieces(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Ours."""
    terms = [Term(read_NK=hidden_NH, weight_VK=weight_VH)]
    return linear_logprobs(terms, None, target_N, temperature=TEMPERATURE, entropy_gradient=False)


def whole(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """All logits at once; the entropy without a gradient, as in ours."""
    logits_NV = (hidden_NH @ weight_VH.T).float() / TEMPERATURE
    normaliser_N = logits_NV.logsumexp(dim=-1)
    logprobs_N = logits_NV.gather(1, target_N[:, None]).squeeze(1) - normaliser_N
    with torch.no_grad():
        shares_NV = (logits_NV - normaliser_N[:, None]).exp()
        entropy_N = normaliser_N - (shares_NV * logits_NV).sum(dim=-1)
    return logprobs_N, entropy_N


WAYS: dict[str, Way] = {"ours": in_pieces, "whole": whole}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One way, once."""

    head: str
    way: str
    dtype: str
    backward: bool
    tokens: int
    peak_mib: float
    gradients_mib: float
    """Of what the pass hands out."""
    share: float
    """The peak without them, of the logits' size in float32."""
    seconds: float


def made(head: Head, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(SEED)
    hidden_NH = torch.randn(tokens, head.hidden, generator=random).to(dtype)
    weight_VH = (torch.randn(head.vocabulary, head.hidden, generator=random) / head.hidden**0.5).to(dtype)
    return hidden_NH, weight_VH, torch.randint(0, head.vocabulary, (tokens,), generator=random)


def passed(way: Way, hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, *, backward: bool) -> Tensor:
    """The log-probs; gradients are where autograd leaves them."""
    if not backward:
        with torch.no_grad():
            return way(hidden_NH, weight_VH, target_N)[0]
    logprobs_N, _ = way(hidden_NH, weight_VH, target_N)
    (logprobs_N * torch.linspace(-1.0, 1.0, len(target_N))).sum().backward()
    return logprobs_N.detach()


def one(head: Head, way: str, tokens: int, dtype: torch.dtype, *, backward: bool) -> Point:
    """In this process, which has done nothing else."""
    torch.set_num_threads(THREADS)
    hidden_NH, weight_VH, target_N = (tensor for tensor in made(head, tokens, dtype))
    if backward:
        hidden_NH.requires_grad_(True)
        weight_VH.requires_grad_(True)
        # Where a trainer keeps them: gradients are no part of the pass.
        hidden_NH.grad, weight_VH.grad = torch.zeros_like(hidden_NH), torch.zeros_like(weight_VH)
    with torch.no_grad():
        WAYS[way](hidden_NH[:64], weight_VH, target_N[:64])  # threads and kernels are there
    before = resident()
    forget_peak()
    started = time.process_time()
    passed(WAYS[way], hidden_NH, weight_VH, target_N, backward=backward)
    seconds = time.process_time() - started
    added = peak() - before
    gradients = (hidden_NH.nbytes + weight_VH.nbytes) * backward
    return Point(
        head=head.name, way=way, dtype=str(dtype).removeprefix("torch."), backward=backward, tokens=tokens,
        peak_mib=added / MIB, gradients_mib=gradients / MIB,
        share=(added - gradients) / (4.0 * tokens * head.vocabulary), seconds=seconds,
    )  # fmt: skip


def status_of(key: str) -> int:
    """Bytes, of this process."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def resident() -> int:
    return status_of("VmRSS:")


def peak() -> int:
    return status_of("VmHWM:")


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def in_a_process(head: Head, way: str, tokens: int, dtype: str, *, backward: bool) -> Point:
    command = [sys.executable, "-m", "tests.bench.memory", "--one", head.name, way, str(tokens), dtype, str(backward)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Point(**json.loads(said))


def check(head: Head) -> float:
    """The largest difference between the ways. Raises AssertionError beyond what rounding explains."""
    found = []
    for way in WAYS.values():
        hidden_NH, weight_VH, target_N = made(head, CHECKED_TOKENS, torch.float32)
        hidden_NH.requires_grad_(True)
        weight_VH.requires_grad_(True)
        logprobs_N = passed(way, hidden_NH, weight_VH, target_N, backward=True)
        found.append((logprobs_N, hidden_NH.grad, weight_VH.grad))
    worst = max(
        float((own - other).abs().max()) / (1.0 if number == 0 else float(other.abs().max()))
        for number, (own, other) in enumerate(zip(*found, strict=True))
    )
    assert worst <= MOST_DIFFERENCE, f"{head.name}: the ways differ by {worst}, and no figure means anything"
    return worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A head, both ways."""

    head: str
    dtype: str
    backward: bool
    tokens: int
    peak_mib: float
    gradients_mib: float
    share: float
    """Of ours: the peak without the gradients, over the logits' size."""
    whole_share: float
    whole_tokens: int
    """Fewer, where memory has no room for all logits."""
    time_ratio: float
    """Ours over whole, a token, the median of the pairs."""


def compared(head: Head, dtype: str, pairs: int, tokens: int, room_tokens: int, *, backward: bool) -> Compared:
    fewer = min(tokens, room_tokens)
    ours = in_a_process(head, "ours", tokens, dtype, backward=backward)
    ratios, whole_shares = [], []
    for _ in range(pairs):
        own, other = (in_a_process(head, way, fewer, dtype, backward=backward) for way in ("ours", "whole"))
        ratios.append(own.seconds / other.seconds)
        whole_shares.append(other.share)
    return Compared(
        head=head.name, dtype=dtype, backward=backward, tokens=tokens,
        peak_mib=ours.peak_mib, gradients_mib=ours.gradients_mib, share=ours.share,
        whole_share=statistics.median(whole_shares), whole_tokens=fewer, time_ratio=statistics.median(ratios),
    )  # fmt: skip


def show(found: list[Compared]) -> None:
    table = Table(title="log-probs and entropies of a batch", title_justify="left")
    for heading in ("head", "", "pass", "tokens", "peak MiB", "gradients", "rest / logits", "whole", "time / whole"):
        table.add_column(heading, justify="left" if heading in ("head", "", "pass") else "right")
    for case in found:
        table.add_row(
            case.head, case.dtype, "forward + backward" if case.backward else "forward", f"{case.tokens:,}",
            f"{case.peak_mib:,.0f}", f"{case.gradients_mib:,.0f}", f"{case.share:.3f}", f"{case.whole_share:.2f}",
            f"{case.time_ratio:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--room", type=int, default=2048, help="tokens whose logits have room several times over")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, help="one of them (default: both)")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        name, way, tokens, dtype, backward = asked.one
        head = next(head for head in HEADS if head.name == name)
        print(json.dumps(asdict(one(head, way, int(tokens), getattr(torch, dtype), backward=backward == "True"))))
        return
    differences = {head.name: check(head) for head in HEADS}
    found = [
        compared(head, dtype, asked.pairs, asked.tokens, asked.room, backward=backward)
        for head in HEADS
        for dtype in DTYPES
        if asked.dtype in (None, dtype)
        for backward in (False, True)
    ]
    command = " ".join(["python -m tests.bench.memory", *sys.argv[1:]])
    origin = {"command": command, "git": git_version(), "seed": SEED, "threads": THREADS}
    tell(origin | {"differences": differences, "cases": [asdict(c) for c in found]}, asked.json, lambda: show(found))


if __name__ == "__main__":
    main()
