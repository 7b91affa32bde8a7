"""What bounds do between the four updates of a step: GSPO's against GRPO's, a higher ceiling against a plain one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.algorithms.runs import REPOSITORY, Finished, Run, write_json

UPDATES = 4
PLAIN = ("algo=grpo", "algo.kl_coef=0")
CASES = {
    "plain": PLAIN,
    "clip_higher": (*PLAIN, "algo.clip_high=0.28"),
    "gspo": ("algo=gspo",),
}
SEEDS = (0, 1, 2)


def runs(folder: Path, settings: Sequence[str]) -> Iterator[tuple[str, int, Run]]:
    for seed in SEEDS:
        for case, overrides in CASES.items():
            typed = (*overrides, f"train.updates_per_step={UPDATES}", "evaluation.prompts=0", *settings)
            yield case, seed, Run(name=f"{case}-seed{seed}", overrides=(*typed, f"run.seed={seed}"), folder=folder)


def planned(folder: Path, settings: Sequence[str]) -> Iterator[Run]:
    return (run for _, _, run in runs(folder, settings))


def compare(folder: Path, settings: Sequence[str], results: Path, console: Console) -> None:
    """Writes `results` when all runs are done, and what is done so far into the runs' folder."""
    cases: dict[str, dict[str, Any]] = {case: {} for case in CASES}
    again = shlex.join(["python", "examples/algorithms/compare.py", "--clipping", *settings])
    content: dict[str, Any] = {}
    for case, seed, run in runs(folder, settings):
        cases[case][f"seed {seed}"] = measured = _measured(run.do())
        content = {"again": again, "signs": _signs(cases), **cases}
        write_json(REPOSITORY / folder / "clipping.json", content)
        shown = f"clipped {measured['clipped_share']:.4f} of the tokens, entropy {measured['entropy_at_the_end']:.4f}"
        console.print(f"{run.name}: {shown}", highlight=False)
    write_json(results, content)
    console.print(content["signs"])


def _measured(run: Finished) -> dict[str, Any]:
    figures = run.figures()
    return {
        "clipped_share": figures["clip_low"]["mean"] + figures["clip_high"]["mean"],
        "entropy_at_the_end": figures["entropy"]["last_fifth"],
        "reward_at_the_end": run.steps[-1]["reward/mean"],
        "steps": run.summary["steps"],
        "wall_s": run.summary["wall_s"],
        "origin": run.summary["origin"],
        "entropies": [round(row["entropy"], 4) for row in run.steps],
        "clipped_shares": [round(row["clip_low"] + row["clip_high"], 5) for row in run.steps],
    }


def _signs(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """One sign a seed that all cases have: 1 is as the papers say."""
    seeds = [seed for seed in cases["plain"] if all(seed in case for case in cases.values())]

    def signs(figure: str, larger: str) -> list[int]:
        differences = [cases[larger][seed][figure] - cases["plain"][seed][figure] for seed in seeds]
        return [(difference > 0) - (difference < 0) for difference in differences]

    return {
        "gspo_clips_more_tokens": signs("clipped_share", "gspo"),
        "clip_higher_keeps_more_entropy": signs("entropy_at_the_end", "clip_higher"),
    }
