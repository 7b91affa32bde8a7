"""One rank of a model that learns, on DeepSpeed: what policy and critic have in common.

Exact by construction: every contribution to a loss is divided by the optimizer step's totals, DeepSpeed only averages
over ranks, and that average is undone here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from transformers import PreTrainedModel

from workers.activations import keep_within
from workers.batches import append_blank, on_device, pad_with_blank, scatter_rows, select
from workers.checkpoint_file import RankFiles
from workers.config import Device, LoraInit, ModelConfig, Precision, TrainConfig, TuningConfig, TuningMethod
from workers.embedding_noise import noise_seed
from workers.file_entry import FileEntry
from workers.meeting import MeetingPoint, join
from workers.micro_batches import Units, micro_batches, one_by_one
from workers.model import Scorer
from workers.optimizer import deepspeed_settings, learning_rate, make_optimizer, optimizer_settings
from workers.packing import attend_by_segment
from workers.records import Batch, Loss, Update
from workers.resharding import load_resharded, saved_ranks
from workers.tally import Tally
from workers.tuned_weights import whole_weights
from workers.tuning import tune


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Where one rank stands; decided by the driver, so that no worker guesses from its environment."""

    role: str
    """Of the model that its ranks train together: policy or critic."""
    rank: int
    world_size: int
    meeting: MeetingPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSetup:
    """What every rank of a trainer is built from."""

    model: ModelConfig
    train: TrainConfig
    device: Device
    seed: int
    total_updates: int
    tuning: TuningConfig


MicroLoss = Callable[[Batch, Sequence[int]], Loss]
"""The loss of some rows: they as a micro-batch, and their numbers in the whole batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One optimizer step on a batch of rollouts.

    Example (the second update, of the third time through the batch):
        Pass(epoch=2, number=1, rows=range(128, 256))
    """

    epoch: int
    number: int
    """Of its update among those of the batch."""
    rows: range
    """In the batch."""

    @property
    def is_first(self) -> bool:
        return self.epoch == self.number == 0


def passes(updates: Sequence[Update], *, epochs: int) -> Iterator[Pass]:
    """Every optimizer step of a batch, in order: its updates lie one after the other, in each epoch."""
    ends = list(accumulate(len(update.rows) for update in updates))
    for epoch in range(epochs):
        for number, (start, end) in enumerate(pairwise([0, *ends])):
            yield Pass(epoch=epoch, number=number, rows=range(start, end))


class TrainWorker(ABC):
    """One data-parallel rank of a model that learns. A plain class: it needs Ray only to live in a process of its own.

    Every verb is a collective call: all ranks make the same number of forward and backward passes.
    """

    def __init__(self, setup: TrainerSetup, rank: RankInfo) -> None:
        # DeepSpeed takes seconds to import and belongs to this process alone.
        import deepspeed
        from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

        self._train, self._rank, self._total_updates = setup.train, rank, setup.total_updates
        self._seed, self._tuning = setup.seed, setup.tuning
        self._device = torch.device("cuda", 0) if setup.device is Device.CUDA else torch.device("cpu")
        os.environ.update(RANK=str(rank.rank), WORLD_SIZE=str(rank.world_size), LOCAL_RANK="0")
        # On CPU DeepSpeed would compile a collective of its own for minutes; gloo has one.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if setup.device is Device.CUDA else "gloo"
        if not torch.distributed.is_initialized():
            join(rank.meeting, name=rank.role, rank=rank.rank, world_size=rank.world_size, backend=backend)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        bfloat16 = setup.model.precision is Precision.BFLOAT16
        settings = deepspeed_settings(setup.train, bfloat16=bfloat16)
        if setup.train.zero_stage == 3:
            # Must be alive before the model is loaded: transformers then shards each tensor as it reads it.
            self._hf_deepspeed = HfDeepSpeedConfig(settings)
        else:
            # An earlier trainer of this process may be alive until its cycles are collected, on one rank and not on
            # another: one would shard what the other reads whole.
            unset_hf_deepspeed_config()
        self._model = self._load_model(setup)
        tune(self._model, setup.tuning, seed=setup.seed, gather=self._gathered)
        if setup.train.packing:
            attend_by_segment(self._model)
        if setup.train.activations_gib:
            tokens = max(setup.train.tokens_per_micro_batch, setup.model.context_length)
            keep_within(self._model, budget_gib=setup.train.activations_gib, tokens=tokens)
        self._model.train()
        scorer = self._scorer(self._model)
        if setup.train.zero_stage == 3:
            for parameter in scorer.read_directly():
                deepspeed.zero.register_external_parameter(scorer, parameter)
        if self._saves_only_what_is_learned:
            scorer.register_state_dict_post_hook(_drop_what_is_frozen)
        self._engine, *_ = deepspeed.initialize(
            model=scorer,
            optimizer=make_optimizer([p for p in scorer.parameters() if p.requires_grad], setup.train),
            config=settings,
        )
        self._updates_done = 0

    @abstractmethod
    def _load_model(self, setup: TrainerSetup) -> PreTrainedModel: ...

    @abstractmethod
    def _scorer(self, model: PreTrainedModel) -> Scorer:
        """What DeepSpeed wraps: the model and the head that is learned with."""

    # ------------------------------------------------------------------ learning

    def _optimizer_step(self, batch: Batch, units: Units, micro_loss: MicroLoss, *, tally: Tally) -> None:
        """Any number of forward and backward passes, then one step."""
        # Dropout draws from the process's generators: what it draws must not hang on what was drawn before.
        torch.manual_seed(noise_seed("update", self._seed, self._rank.role, self._updates_done, self._rank.rank))
        for chosen in self._micro_batches(batch, units):
            micro_batch = select(batch, chosen)
            loss = micro_loss(micro_batch, chosen)
            # DeepSpeed averages gradients over ranks; contributions are shares of a sum. A loss that is not finite may
            # have a gradient that is, where something was clamped on the way: the update is skipped all the same.
            scale = torch.where(loss.value.isfinite(), float(self._rank.world_size), float("nan"))
            self._engine.backward(loss.value * scale)
            tally.add_tokens(int(micro_batch.mask_BT.sum()))
            tally.add_loss(loss)
        rate = learning_rate(self._train, update=self._updates_done, total_updates=self._total_updates)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        self._updates_done += 1
        tally.add_step(
            gradient_norm=float(self._engine.get_global_grad_norm()),
            learning_rate=rate,
            skipped=bool(self._engine.optimizer.overflow),
            is_first_rank=self._rank.rank == 0,
        )

    def _on_device(self, batch: Batch) -> Batch:
        return on_device(append_blank(batch), self._device)

    def _outputs_on_device(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: pad_with_blank(torch.tensor(array)).to(self._device) for name, array in arrays.items()}

    def _micro_batches(self, batch: Batch, units: Units) -> list[tuple[int, ...]]:
        """Row numbers by micro-batch; ranks with fewer end with the blank row (collectives must match across ranks)."""
        chosen = micro_batches(
            batch,
            units,
            tokens_per_micro_batch=self._train.tokens_per_micro_batch,
            packing=self._train.packing,
        )
        if self._rank.world_size > 1:
            most = torch.tensor([len(chosen)], device=self._device)
            torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
            blank_row = len(batch) - 1
            chosen += [(blank_row,)] * (int(most) - len(chosen))
        return chosen

    @torch.no_grad()
    def _of_every_token(self, batch: Batch, score: Callable[[Batch], Tensor]) -> Tensor:
        """[B, T] what `score` says of a batch that ends with its blank row."""
        with self._looking():
            pieces = [
                (chosen, score(select(batch, chosen)))
                for chosen in self._micro_batches(batch, one_by_one(range(len(batch) - 1)))
            ]
        return scatter_rows(pieces, shape=tuple(batch.mask_BT.shape), device=self._device)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Nothing of what helps learning (an adapter's dropout) disturbs what the model says."""
        self._engine.eval()
        try:
            yield
        finally:
            self._engine.train()

    def _all_reduce(self, sums: Tensor) -> Tensor:
        if self._rank.world_size > 1:
            torch.distributed.all_reduce(sums)
        return sums

    # ------------------------------------------------------------------ weights

    def _whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight by name, whole while it is looked at: under ZeRO-3 a rank has room for one of them, not for all.

        A collective call there: every rank goes through all of them.
        """
        return whole_weights(self._model, gather=self._gathered)

    def _gathered(self, parameters: list[torch.nn.Parameter]) -> AbstractContextManager[None]:
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, enabled=self._train.zero_stage == 3)

    def offload(self) -> None:
        """Make room on a GPU that the rollout engine shares (ZeRO 1-3)."""
        self._engine.offload_states()

    def reload(self) -> None:
        self._engine.reload_states()

    # ------------------------------------------------------------------ checkpoints

    @property
    def _saves_only_what_is_learned(self) -> bool:
        """Whether the rest is what the model's own folder, and the adapters of earlier runs, say again."""
        changes_base = self._tuning.method is TuningMethod.FULL or self._tuning.init is LoraInit.PISSA
        return not changes_base

    def save(self, folder: Path) -> tuple[FileEntry, ...]:
        """Everything that decides this rank's future: what it has learned, optimizer, the schedule's position.

        Returns its large files; DeepSpeed writes a few bytes beside them. Raises OSError where this rank's disk failed.
        """
        files = RankFiles(folder)
        # DeepSpeed calls it for each of them, in place of its own.
        self._engine.checkpoint_engine.save = files.save
        self._engine.save_checkpoint(
            str(folder),
            tag=self._rank.role,
            client_state={"updates_done": self._updates_done},
            exclude_frozen_parameters=self._saves_only_what_is_learned,
        )
        return files.written()

    def load(self, folder: Path) -> None:
        """The other half of `save`, by as many ranks or by others: `resharding` says what that changes.

        The caller has checked the folder's manifest: what is there is unpickled.
        """
        # DeepSpeed fails an assertion without a message where there is nothing to load.
        tag = self._rank.role
        if not (folder / tag).is_dir():
            raise FileNotFoundError(f"no DeepSpeed checkpoint of the {tag} in {folder}")
        strict = not self._saves_only_what_is_learned
        if saved_ranks(folder / tag) in (0, self._rank.world_size):
            _, client_state = self._engine.load_checkpoint(str(folder), tag=tag, load_module_strict=strict)
        else:
            client_state = load_resharded(self._engine, folder / tag, strict=strict)
        self._updates_done = client_state["updates_done"]
        # A checkpoint brings the settings along that it was saved under.
        for group in self._engine.optimizer.param_groups:
            group.update(optimizer_settings(self._train))


def _drop_what_is_frozen(module: torch.nn.Module, state: dict[str, object], prefix: str, _: object) -> None:
    """From a checkpoint: also the scales of quantized matrices, which are no parameters."""
    learned = {f"{prefix}{name}" for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name in [name for name in state if name not in learned]:
        del state[name]
