"""What one GPU makes of the code that only a GPU tells of: log-probs in tiles, packed rows, a whole step.

    python -m tests.gpu.bench                      # tables
    python -m tests.gpu.bench --json gpu.json      # the same as JSON; --json alone prints it
    python -m tests.gpu.bench --part head          # head, packed or step
    python -m tests.gpu.bench --tiny               # the same code in miniature on a CPU: its figures mean nothing

Shares and MFU are of a matmul peak that is measured first, on the same device: a square product in bfloat16. MFU is
model operations (6 x matmul parameters x tokens, and attention) over time over that peak. Memory is what a pass adds at
its peak beside what was there before it, as the device's allocator counts it. `-` is where a way had no room.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from engine.origin import git_version
from tests.bench._output import tell
from tests.gpu import _head, _packed, _step
from tests.gpu._device import CPU, CUDA, matmul_flops_per_s, name_of, tidy
from tests.gpu._head import HeadCase, HeadFigures, PassFigures, measure_head
from tests.gpu._models import SEED
from tests.gpu._packed import PackedCase, PackedFigures, WayFigures
from tests.gpu._step import StepCase, StepFigures, measure_step

PARTS = ("head", "packed", "step")
NO_ROOM = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured where, and how often."""

    device: torch.device
    matmul_size: int
    matmul_repeats: int
    repeats: int
    head: tuple[HeadCase, ...]
    packed: tuple[PackedCase, ...]
    step: tuple[StepCase, ...]


REAL = Plan(
    device=CUDA, matmul_size=8192, matmul_repeats=30, repeats=5, head=_head.CASES, packed=_packed.CASES,
    step=_step.CASES,
)  # fmt: skip
TINY = Plan(
    device=CPU, matmul_size=256, matmul_repeats=3, repeats=1, head=_head.TINY, packed=_packed.TINY, step=_step.TINY,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Everything that was measured; parts that were not asked for are empty."""

    matmul_tflops: float
    """The peak that shares are of."""
    head: list[HeadFigures]
    packed: list[PackedFigures]
    step: list[StepFigures | None]


def measured(plan: Plan, parts: Sequence[str]) -> Found:
    peak = matmul_flops_per_s(plan.matmul_size, plan.device, repeats=plan.matmul_repeats)
    how = {"peak": peak, "repeats": plan.repeats}
    head, packed, step = [], [], []
    if "head" in parts:
        for case in plan.head:
            print(f"head of {case.name} ...", file=sys.stderr)
            head.append(measure_head(case, plan.device, **how))
    if "packed" in parts:
        print("packed ...", file=sys.stderr)
        packed = _packed.measure_all(plan.packed, plan.device, **how)
    if "step" in parts:
        for case in plan.step:
            print(f"step of {case.model} ...", file=sys.stderr)
            # Its process has the device to itself.
            tidy(plan.device)
            step.append(measure_step(case, plan.device, **how))
    return Found(matmul_tflops=peak / 1e12, head=head, packed=packed, step=step)


def show(found: Found, device: torch.device) -> None:
    where = f"{name_of(device)}: matmul peak {found.matmul_tflops:,.3g} TF/s"
    head = _table(
        f"log-probs from hidden states in bfloat16, {where}",
        ("head", "tokens", "pass", "TF/s", "of peak", "extra GiB", "naive, of peak", "naive, extra GiB"),
    )
    for own in found.head:
        for name, ours, naive in (
            ("forward", own.forward, own.naive_forward),
            ("forward + backward", own.train, own.naive_train),
        ):
            tflops = f"{ours.tflops:,.3g}" if ours else NO_ROOM
            head.add_row(own.case, f"{own.tokens:,}", name, tflops, *_of_pass(ours), *_of_pass(naive))
    packed = _table(
        f"forward and backward passes of a model, {where}",
        ("model", "tokens", "layers again", "tokens/s", "MFU", "extra GiB", "padded: tokens/s", "MFU", "extra GiB"),
    )
    for own in found.packed:
        again = "yes" if own.checkpointing else "no"
        packed.add_row(own.model, f"{own.tokens:,}", again, *_of_way(own.packed), *_of_way(own.padded))
    step = _table(
        f"a step of the trainer, {where}",
        ("model", "tokens", "look s", "credit s", "update s", "tokens/s", "MFU", "peak GiB"),
    )
    for own in found.step:
        if own is None:
            step.add_row(NO_ROOM)
            continue
        peaks = own.verbs.peaks_gib
        seconds = (f"{own.verbs.seconds[verb]:.3f}" for verb in _step.VERBS)
        most = peaks.get("update_device_gib", peaks["update_gib"])
        step.add_row(
            own.model, f"{own.tokens:,}", *seconds, f"{own.tokens_per_s:,.0f}", f"{own.mfu:.1%}", f"{most:.1f}"
        )
    for shown in (head, packed, step):
        if shown.row_count:
            Console(width=120).print(shown)


def _of_pass(own: PassFigures | None) -> tuple[str, str]:
    return (f"{own.share:.1%}", f"{own.extra_gib:.2f}") if own else (NO_ROOM, NO_ROOM)


def _of_way(own: WayFigures | None) -> tuple[str, str, str]:
    if own is None:
        return NO_ROOM, NO_ROOM, NO_ROOM
    return f"{own.tokens_per_s:,.0f}", f"{own.mfu:.1%}", f"{own.extra_gib:.2f}"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="left" if heading in ("head", "model", "pass") else "right")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON: into a file, or printed")
    parser.add_argument("--part", choices=PARTS, action="append", help="one of them (default: all); may be repeated")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a CPU, to see that it runs")
    asked = parser.parse_args()
    plan = TINY if asked.tiny else REAL
    if plan.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: --tiny runs the same code in miniature on a CPU")
    if asked.tiny:
        torch.set_num_threads(1)
    parts = asked.part or PARTS
    found = measured(plan, parts)
    chosen = [f"--part {part}" for part in asked.part or ()] + ["--tiny"] * asked.tiny
    origin = {
        "command": " ".join(["python -m tests.gpu.bench", *chosen]), "git": git_version(), "seed": SEED,
        "device": name_of(plan.device), "torch": torch.__version__,
    }  # fmt: skip
    tell(origin | asdict(found), asked.json, lambda: show(found, plan.device))


if __name__ == "__main__":
    main()
