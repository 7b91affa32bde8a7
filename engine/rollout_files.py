"""What a run keeps of its responses: all of some steps' (`engine/group_files.py` says how they are written), and the
list of those that were not judged.

`rollouts/step_000010.jsonl` has a line for each response that was sampled for step 10: those it learned from, a group's
greedy one behind its siblings, and behind them all the groups that dynamic sampling passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.group_files import JudgedGroup, Name, as_line, read_groups, write_groups
from workers.records import GroupSummary

MOST_FAILURE_BYTES = 16 * 2**20
MOST_REASON_CHARACTERS = 2000


def write_rollouts(
    run_folder: Path,
    step: int,
    groups: Sequence[JudgedGroup],
    *,
    advantages: Mapping[Name, float],
) -> None:
    """What was sampled for a step (from 1), for people and for replay."""
    write_groups(rollouts_of(run_folder, step).with_suffix(""), groups, advantages=advantages)


def read_rollouts(run_folder: Path, step: int) -> list[JudgedGroup]:
    """What `write_rollouts` was given. Raises NotGroups where the step was not kept, or its files are damaged."""
    return read_groups(rollouts_of(run_folder, step).with_suffix(""))


def rollouts_of(run_folder: Path, step: int) -> Path:
    """Where a run keeps the responses of a step (from 1), if it does."""
    return run_folder / "rollouts" / f"step_{step:06d}.jsonl"


class FailureList:
    """`failures.jsonl`: a line for each response that was not judged, `{"step", "id", "draw", "sample", "kind",
    "reason"}`, until the file is large; further ones are only counted, in the metrics `reward_failures/<kind>`."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """What an earlier run listed of later steps is forgotten: they are done again."""
        self._path = path
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(line for line in lines if json.loads(line)["step"] <= after_step))

    def add(self, step: int, summary: GroupSummary) -> None:
        """Those of one group; `step` is from 1."""
        with self._path.open("ab") as file:
            for sample, failure in summary.failures().items():
                line = as_line(
                    {
                        "step": step,
                        "id": summary.prompt_id,
                        "draw": summary.draw,
                        "sample": sample,
                        "kind": failure.kind.value,
                        "reason": failure.reason[:MOST_REASON_CHARACTERS],
                    }
                )
                if file.tell() + len(line) <= MOST_FAILURE_BYTES:
                    file.write(line)
