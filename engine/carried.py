"""Groups that dynamic sampling leaves over for the next step, in a checkpoint: nobody could sample them again, for the
weights that did are no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray

from engine.group_files import JudgedGroup, read_groups, write_groups
from engine.rollout_stream import TakenGroup

CARRIED = "carried"


def save_carried(groups: Sequence[TakenGroup], folder: Path) -> None:
    """Nothing where none are left over."""
    if groups:
        judged = [
            JudgedGroup(group=group, judgements=taken.summary.judgements, dropped=None)
            for group, taken in zip(ray.get([taken.group for taken in groups]), groups, strict=True)
        ]
        write_groups(folder / CARRIED, judged, advantages={})


def load_carried(folder: Path | None) -> tuple[TakenGroup, ...]:
    """Of the checkpoint at `folder`; none where it holds none."""
    if folder is None or not (folder / f"{CARRIED}.jsonl").exists():
        return ()
    return tuple(taken_group(judged) for judged in read_groups(folder / CARRIED))


def taken_group(judged: JudgedGroup) -> TakenGroup:
    """A group from a file, as if it had just been judged."""
    return TakenGroup(summary=judged.group.summary(judged.judgements, judging_s=0.0), group=ray.put(judged.group))
