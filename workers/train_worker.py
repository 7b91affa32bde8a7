"""One rank of the policy trainer, on DeepSpeed: forward, update, give weights, save.

Algorithm-blind: it is handed an objective and calls it once per micro-batch. Exact by construction: every contribution
is divided by the optimizer step's totals, DeepSpeed only averages over ranks, and that average is undone here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from workers.batches import (
    append_blank,
    collate,
    collate_examples,
    cut,
    on_device,
    pad_with_blank,
    scatter_rows,
    select,
    select_experience,
)
from workers.config import Device, ModelConfig, OldLogprobs, Precision, TrainConfig
from workers.meeting import MeetingPoint, join
from workers.model import TokenScorer, load_language_model, score_tokens
from workers.optimizer import deepspeed_settings, learning_rate, make_optimizer
from workers.records import (
    AlgorithmState,
    Batch,
    Example,
    Experience,
    Group,
    Loss,
    ModelOutputs,
    OfflineObjective,
    PolicyObjective,
    TokenLogprobs,
    Totals,
    Update,
    WeightManifest,
)
from workers.tally import Tally, UpdateReport
from workers.weight_sync import SharedWeights, padded_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Where one rank stands; decided by the driver, so that no worker guesses from its environment."""

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


MicroLoss = Callable[[TokenLogprobs, Sequence[int]], Loss]


class TrainWorker:
    """One data-parallel rank. A plain class: it needs Ray only to live in a process of its own."""

    def __init__(self, setup: TrainerSetup, rank: RankInfo) -> None:
        # DeepSpeed takes seconds to import and belongs to this process alone.
        import deepspeed

        self._train, self._rank, self._total_updates = setup.train, rank, setup.total_updates
        self._device = torch.device("cuda", 0) if setup.device is Device.CUDA else torch.device("cpu")
        os.environ.update(RANK=str(rank.rank), WORLD_SIZE=str(rank.world_size), LOCAL_RANK="0")
        # On CPU DeepSpeed would compile a collective of its own for minutes; gloo has one.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if setup.device is Device.CUDA else "gloo"
        if not torch.distributed.is_initialized():
            join(rank.meeting, name="policy", rank=rank.rank, world_size=rank.world_size, backend=backend)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        bfloat16 = setup.model.precision is Precision.BFLOAT16
        settings = deepspeed_settings(setup.train, bfloat16=bfloat16)
        if setup.train.zero_stage == 3:
            # Must be alive before the model is loaded: transformers then shards each tensor as it reads it.
            from transformers.integrations import HfDeepSpeedConfig

            self._hf_deepspeed = HfDeepSpeedConfig(settings)
        language_model = load_language_model(setup.model, seed=setup.seed)
        language_model.train()
        scorer = TokenScorer(language_model)
        self._engine, *_ = deepspeed.initialize(
            model=scorer,
            optimizer=make_optimizer([p for p in scorer.parameters() if p.requires_grad], setup.train),
            config=settings,
        )
        self._language_model = language_model
        self._shared_weights = SharedWeights()
        self._updates_done = 0

    # ------------------------------------------------------------------ learning

    def update(
        self,
        updates: tuple[Update, ...],
        objective: PolicyObjective,
        state: AlgorithmState,
        temperature: float,
        frozen_outputs: Mapping[str, np.ndarray],
        *groups: Group,
    ) -> UpdateReport:
        """Learn from one batch of rollouts: one optimizer step for each of `updates`.

        `frozen_outputs` are what frozen models said of these rows, [B, T] each, rows in the order of `updates`.
        """
        batch = self._on_device(collate([row for update in updates for row in update.rows], groups))
        tensors = {name: pad_with_blank(torch.tensor(array)).to(self._device) for name, array in frozen_outputs.items()}
        recomputed = self._train.old_logprobs is OldLogprobs.RECOMPUTE or len(updates) > 1
        if recomputed:
            tensors["old_logprobs_BT"] = self.logprobs(batch, temperature=temperature)
        outputs = ModelOutputs(tensors=tensors)
        experience = Experience(batch=batch, outputs=outputs, credit=objective.token_credit(batch, outputs))

        tally = Tally(num_updates=len(updates), num_tokens=sum(update.totals.tokens for update in updates))
        next_row = 0
        for number, update in enumerate(updates):
            rows = range(next_row, next_row + len(update.rows))
            next_row = rows.stop

            def micro_loss(
                policy: TokenLogprobs, chosen: Sequence[int], update: Update = update, number: int = number
            ) -> Loss:
                past = select_experience(experience, chosen)
                if not recomputed:
                    past = _with_own_logprobs(past, policy)
                tally.add_mismatch(past)
                if recomputed and number == 0:
                    tally.add_ratio(policy, past)
                return objective.policy_loss(policy, past, update.totals, state)

            self._optimizer_step(batch, rows, micro_loss, temperature=temperature, tally=tally)
        return tally.report()

    def fit(self, examples: tuple[Example, ...], totals: Totals, objective: OfflineObjective) -> UpdateReport:
        """One optimizer step of an offline stage on this rank's examples; `totals` count all ranks'."""
        batch = self._on_device(collate_examples(examples))
        tally = Tally(num_updates=1, num_tokens=totals.tokens)

        def micro_loss(policy: TokenLogprobs, chosen: Sequence[int]) -> Loss:
            return objective.loss(policy, select(batch, chosen), totals)

        self._optimizer_step(batch, range(len(examples)), micro_loss, temperature=1.0, tally=tally)
        return tally.report()

    def _optimizer_step(
        self, batch: Batch, rows: range, micro_loss: MicroLoss, *, temperature: float, tally: Tally
    ) -> None:
        """Any number of forward and backward passes, then one step. All ranks make the same number of passes."""
        for chosen in self._micro_batches(batch, rows):
            micro_batch = select(batch, chosen)
            policy = score_tokens(self._engine, micro_batch, temperature=temperature, device=self._device)
            loss = micro_loss(policy, chosen)
            # DeepSpeed averages gradients over ranks; contributions are shares of a sum.
            self._engine.backward(loss.value * self._rank.world_size)
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

    def _micro_batches(self, batch: Batch, rows: range) -> list[tuple[int, ...]]:
        """Row numbers by micro-batch; ranks with fewer end with the blank row (collectives must match across ranks)."""
        lengths = batch.lengths()
        pieces = cut([lengths[row] for row in rows], tokens_per_micro_batch=self._train.tokens_per_micro_batch)
        chosen = [tuple(rows[index] for index in piece) for piece in pieces]
        if self._rank.world_size > 1:
            most = torch.tensor([len(chosen)], device=self._device)
            torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
            blank_row = len(batch) - 1
            chosen += [(blank_row,)] * (int(most) - len(chosen))
        return chosen

    @torch.no_grad()
    def logprobs(self, batch: Batch, *, temperature: float) -> Tensor:
        """[B, T] log-probs of a batch that ends with its blank row; a collective call under ZeRO-3."""
        pieces = []
        for chosen in self._micro_batches(batch, range(len(batch) - 1)):
            scored = score_tokens(self._engine, select(batch, chosen), temperature=temperature, device=self._device)
            pieces.append((chosen, scored.logprobs_BT))
        return scatter_rows(pieces, shape=tuple(batch.mask_BT.shape), device=self._device)

    def evaluate(self, examples: tuple[Example, ...]) -> tuple[float, int]:
        """(sum of negative log-likelihoods, trained tokens) of this rank's held-out examples."""
        batch = self._on_device(collate_examples(examples))
        logprobs_BT = self.logprobs(batch, temperature=1.0)
        return float(-logprobs_BT[batch.mask_BT].double().sum()), int(batch.mask_BT.sum())

    # ------------------------------------------------------------------ weights

    def publish(self, version: int) -> WeightManifest | None:
        """Lay all weights out in shared memory. A collective call under ZeRO-3; only rank 0 returns a manifest."""
        if self._rank.rank != 0:
            for _ in self._whole_weights():
                pass
            return None
        # Under ZeRO-3 a parameter is empty until it is gathered, and keeps its shape elsewhere.
        shapes = (
            torch.empty(getattr(parameter, "ds_shape", parameter.shape), dtype=parameter.dtype, device="meta")
            for parameter in self._language_model.parameters()
        )
        return self._shared_weights.write(self._whole_weights(), version=version, num_bytes=padded_bytes(shapes))

    def export(self, folder: Path) -> None:
        """Write the policy as a plain Hugging Face folder (weights and architecture; the caller adds the tokenizer)."""
        is_writer = self._rank.rank == 0
        state = {name: tensor.detach().cpu().clone() for name, tensor in self._whole_weights() if is_writer}
        if is_writer:
            self._language_model.config.use_cache = True
            self._language_model.save_pretrained(folder, state_dict=state)
            self._language_model.config.use_cache = False

    def _whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight by name, whole while it is looked at: under ZeRO-3 a rank has room for one of them, not for all.

        A collective call there: every rank goes through all of them.
        """
        for name, parameter in self._language_model.named_parameters():
            with self._gathered([parameter]):
                yield name, parameter

    def _gathered(self, parameters: list[torch.nn.Parameter]) -> AbstractContextManager[None]:
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, enabled=self._train.zero_stage == 3)

    def offload(self) -> None:
        """Make room on a GPU that the rollout engine shares (ZeRO 1-3)."""
        self._engine.offload_states()

    def reload(self) -> None:
        self._engine.reload_states()

    # ------------------------------------------------------------------ checkpoints

    def save(self, folder: Path) -> None:
        """Everything that decides this rank's future: weights, optimizer, the schedule's position."""
        self._engine.save_checkpoint(str(folder), tag="trainer", client_state={"updates_done": self._updates_done})

    def load(self, folder: Path) -> None:
        """The other half of `save`. The caller has checked the folder's manifest: DeepSpeed unpickles what is there."""
        # DeepSpeed fails an assertion without a message where there is nothing to load.
        if not (folder / "trainer").is_dir():
            raise FileNotFoundError(f"no DeepSpeed checkpoint in {folder}")
        _, client_state = self._engine.load_checkpoint(str(folder), tag="trainer")
        self._updates_done = client_state["updates_done"]


def _with_own_logprobs(past: Experience, policy: TokenLogprobs) -> Experience:
    """On the policy's own first update nothing was recomputed: its log-probs, detached, are the old ones."""
    tensors = {**past.outputs.tensors, "old_logprobs_BT": policy.logprobs_BT.detach()}
    return Experience(batch=past.batch, outputs=ModelOutputs(tensors=tensors), credit=past.credit)
