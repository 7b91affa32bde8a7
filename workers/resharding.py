"""A trainer's checkpoint on another number of ranks than saved it: the same numbers, dealt out anew.

DeepSpeed refuses that for ZeRO 1-3, whose ranks each save a shard of their own. Here a rank puts together the shard
that it would have saved, out of all that were, and DeepSpeed loads it as it loads any. Nothing is computed: no bit
changes. Files are mapped into memory, so that a rank reads what it copies and holds no more than that one shard.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

SHARD_FILE = re.compile(r"(bf16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_00_optim_states\.pt")
LAYOUT = ("partition_count", "group_paddings", "param_slice_mappings")
"""What a shard says of how it was cut: another thing on another number of ranks."""

Shard = Mapping[str, Any]
"""What a rank saves of its optimizer, under DeepSpeed's keys."""
Shapes = Sequence[Mapping[str, torch.Size]]
"""Of the parameters that are learned, by name, for each group of them that lies flat in a shard."""


class ReshardingError(ValueError):
    """The shards of a checkpoint are not all there, or are another model's: says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Numbers that ranks share out in order, each as many; what is over in the end is padding.

    >>> bias = Stretch(name="bias", numel=7, width=3, offset=0)
    >>> [bias.of(rank) for rank in range(4)]
    [range(0, 3), range(3, 6), range(6, 7), range(7, 7)]
    >>> bias.owners(range(2, 6))
    range(0, 2)
    """

    name: str
    numel: int
    width: int
    """Of a rank's part, with its padding."""
    offset: int
    """Where that begins in its group in a shard."""

    def of(self, rank: int) -> range:
        """Which of the numbers a rank has."""
        return range(min(self.numel, rank * self.width), min(self.numel, (rank + 1) * self.width))

    def owners(self, numbers: range) -> range:
        """The ranks that have them."""
        return range(numbers.start // self.width, -(-numbers.stop // self.width))


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Under which keys a shard keeps what, and what ranks share out: each parameter, or each group of them as one."""

    masters: str
    optimizer: str
    by_parameter: bool

    def groups(self, shard: Shard, shapes: Shapes, *, ranks: int) -> list[list[Stretch]]:
        """What lies in each group of a shard, one part behind the other."""
        numels = [{name: math.prod(shape) for name, shape in group.items()} for group in shapes]
        if self.by_parameter:
            return [_behind_each_other({name: (n, -(-n // ranks)) for name, n in group.items()}) for group in numels]
        widths = [len(part) + pad for part, pad in zip(shard[self.masters], shard["group_paddings"], strict=True)]
        return [
            _behind_each_other({f"group {number}": (sum(group.values()), width)})
            for number, (group, width) in enumerate(zip(numels, widths, strict=True))
        ]


def _behind_each_other(sizes: Mapping[str, tuple[int, int]]) -> list[Stretch]:
    """From each one's numel and width."""
    offsets = accumulate((width for _, width in sizes.values()), initial=0)
    return [
        Stretch(name=name, numel=numel, width=width, offset=offset)
        for (name, (numel, width)), offset in zip(sizes.items(), offsets, strict=False)
    ]


OF_STAGE_3 = Format(masters="fp32_flat_groups", optimizer="optimizer_state_dict", by_parameter=True)
OF_STAGES_1_AND_2 = Format(
    masters="single_partition_of_fp32_groups", optimizer="base_optimizer_state", by_parameter=False
)


@dataclass(frozen=True, kw_only=True)
class SavedShards:
    """What all ranks saved of their optimizers."""

    shards: Sequence[Shard]
    """By rank."""
    shapes: Shapes

    @property
    def format(self) -> Format:
        return OF_STAGE_3 if OF_STAGE_3.masters in self.shards[0] else OF_STAGES_1_AND_2

    @cached_property
    def places(self) -> Mapping[str, tuple[int, Stretch]]:
        """By a stretch's name: the number of its group, and the stretch."""
        groups = self.format.groups(self.shards[0], self.shapes, ranks=len(self.shards))
        return {stretch.name: (number, stretch) for number, group in enumerate(groups) for stretch in group}

    def of_rank(self, rank: int, *, ranks: int, fresh: Shard, shapes: Shapes) -> Shard:
        """The shard that `rank` of `ranks` would have saved; `fresh` is what it would save now, of a new model with
        parameters of those `shapes`.

        Raises ReshardingError where that is another model than was saved.
        """
        keys, first = self.format, self.shards[0]
        self._refuse_other_model(fresh, shapes)
        groups = keys.groups(fresh, shapes, ranks=ranks)
        settings = zip(first[keys.optimizer]["param_groups"], fresh[keys.optimizer]["param_groups"], strict=True)
        return {
            **first,
            **{key: fresh[key] for key in LAYOUT if key in fresh},
            keys.masters: [self._part(group, rank, keys.masters) for group in groups],
            keys.optimizer: {
                "state": {number: self._state(group, rank) for number, group in enumerate(groups)},
                "param_groups": [{**saved, "params": now["params"]} for saved, now in settings],
            },
        }

    def _refuse_other_model(self, fresh: Shard, shapes: Shapes) -> None:
        if self.format.masters not in fresh:
            raise ReshardingError("the checkpoint was saved under another ZeRO stage")
        saved, now = _listed(self.shapes), _listed(shapes)
        if saved != now:
            differing = sorted({name for name, _ in set(saved) ^ set(now)}) or ["none: their order does"]
            raise ReshardingError(f"the checkpoint was saved of another model; parameters that differ: {differing[:5]}")

    def _state(self, group: list[Stretch], rank: int) -> Mapping[str, Tensor]:
        """What the optimizer keeps of a rank's part of a group: its moments, and how many steps it has made."""
        number, _ = self.places[group[0].name]
        saved = self.shards[0][self.format.optimizer]["state"].get(number, {})
        # Several groups may have come from one: each counts its steps in a number of its own.
        return {key: self._part(group, rank, key) if value.dim() else value.clone() for key, value in saved.items()}

    def _part(self, group: list[Stretch], rank: int, key: str) -> Tensor:
        """[numbers] float32: a rank's part of the master weights of a group, or of one of their moments."""
        part = torch.zeros(sum(stretch.width for stretch in group))
        for stretch in group:
            wanted, (number, saved) = stretch.of(rank), self.places[stretch.name]
            for owner in saved.owners(wanted):
                has = saved.of(owner)
                low, high = max(wanted.start, has.start), min(wanted.stop, has.stop)
                source = self._saved(owner, number, key)[saved.offset + low - has.start :][: high - low]
                part[stretch.offset + low - wanted.start :][: high - low] = source
        return part

    def _saved(self, owner: int, number: int, key: str) -> Tensor:
        shard = self.shards[owner]
        if key == self.format.masters:
            return shard[key][number]
        return shard[self.format.optimizer]["state"][number][key]


def _listed(shapes: Shapes) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(shape)) for group in shapes for name, shape in group.items()]


# ----------------------------------------------------------------------------- files


def saved_ranks(folder: Path) -> int:
    """How many ranks saved a shard there; 0 where each had everything (ZeRO 0), and one number is like another."""
    return len(_shard_files(folder))


def load_resharded(engine: DeepSpeedEngine, folder: Path, *, strict: bool) -> Mapping[str, Any]:
    """What `engine.load_checkpoint` does, from the shards of another number of ranks. `strict`: all weights are there.

    A collective call. What it returns holds the client state.
    Raises ReshardingError.
    """
    in_parts = engine.zero_optimization_partition_weights()
    # What rank 0 says is so for all ranks; the weights that it lacks under ZeRO 3 are in the shards.
    state = _mapped(folder / f"{'zero_pp_rank_0_' if in_parts else ''}mp_rank_00_model_states.pt")
    files = _shard_files(folder)
    if sorted(files) != [*range(state["dp_world_size"])]:
        raise ReshardingError(f"{folder} was saved by {state['dp_world_size']} ranks and has shards of {sorted(files)}")
    if in_parts and state["frozen_param_fragments"]:
        raise ReshardingError(f"{folder} holds frozen weights in parts, which only as many ranks can put together")
    saved = SavedShards(
        shards=[_mapped(files[rank])["optimizer_state_dict"] for rank in sorted(files)], shapes=state["param_shapes"]
    )
    optimizer, rank, ranks = engine.optimizer, torch.distributed.get_rank(), torch.distributed.get_world_size()
    shard = saved.of_rank(rank, ranks=ranks, fresh=optimizer.state_dict(), shapes=engine._get_zero_param_shapes())
    if in_parts:
        optimizer.checkpoint_event_prologue()
    engine.load_module_state_dict(checkpoint=state, strict=strict)
    optimizer.load_state_dict([shard if each == rank else {} for each in range(ranks)], load_from_fp32_weights=True)
    if in_parts:
        optimizer.checkpoint_event_epilogue()
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, state[name])
    return state


def _shard_files(folder: Path) -> dict[int, Path]:
    """By rank."""
    matches = [(SHARD_FILE.fullmatch(path.name), path) for path in folder.iterdir()]
    return {int(match["rank"]): path for match, path in matches if match}


def _mapped(path: Path) -> dict[str, Any]:
    return torch.load(str(path), map_location="cpu", mmap=True, weights_only=False)
