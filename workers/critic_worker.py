"""One rank of the critic's trainer: what is to be expected before each token, and learning what came instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.batches import collate, select_experience
from workers.micro_batches import one_by_one
from workers.model import Scorer, ValueScorer, load_value_model, score_values
from workers.records import Batch, Credit, Experience, Group, Loss, ModelOutputs, PolicyObjective, Totals, Update
from workers.tally import Tally, UpdateReport
from workers.train_worker import TrainerSetup, TrainWorker, passes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """One batch of rollouts, and what the critic expected of them before the first update."""

    updates: tuple[Update, ...]
    batch: Batch
    """Its blank row last."""
    values_BT: Tensor


class CriticWorker(TrainWorker):
    """The model that is trained to know what is to come."""

    def _load_model(self, setup: TrainerSetup) -> PreTrainedModel:
        return load_value_model(setup.model)

    def _scorer(self, model: PreTrainedModel) -> Scorer:
        return ValueScorer(model)

    def values(self, updates: tuple[Update, ...], *groups: Group) -> Mapping[str, np.ndarray]:
        """Take in the rows of `updates`: {"values_BT": [B, T] float32} in that order."""
        batch = self._on_device(collate([row for update in updates for row in update.rows], groups))
        self._looked = _Looked(updates=updates, batch=batch, values_BT=self._of_every_token(batch, self._value))
        return {"values_BT": self._looked.values_BT[:-1].cpu().numpy()}

    def update(self, objective: PolicyObjective, credit: Mapping[str, np.ndarray]) -> UpdateReport:
        """Learn what did come (`returns_BT` of the policy's `credit`), in the policy's own updates and epochs."""
        looked, epochs = self._looked, self._train.epochs_per_step
        returns_BT = self._outputs_on_device(credit)["returns_BT"]
        experience = Experience(
            batch=looked.batch,
            outputs=ModelOutputs(tensors={"values_BT": looked.values_BT}),
            credit=Credit(advantages_BT=torch.zeros_like(returns_BT), returns_BT=returns_BT),
        )
        tally = Tally(num_updates=len(looked.updates) * epochs)
        for step in passes(looked.updates, epochs=epochs):

            def micro_loss(
                micro_batch: Batch, chosen: Sequence[int], totals: Totals = looked.updates[step.number].totals
            ) -> Loss:
                return objective.value_loss(self._value(micro_batch), select_experience(experience, chosen), totals)

            self._optimizer_step(looked.batch, one_by_one(step.rows), micro_loss, tally=tally)
        return tally.report()

    def _value(self, micro_batch: Batch) -> Tensor:
        return score_values(self._engine, micro_batch, device=self._device)
