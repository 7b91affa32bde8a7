"""One rank of the policy's trainer: look at rollouts, credit them, learn from them, give weights.

Algorithm-blind: it is handed an objective and asks it. The three verbs of a step come in this order, on rows that stay
here in between: `look`, `credit`, `update`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from transformers import PreTrainedModel

from workers.adapters import served_rank
from workers.batches import collate, select_experience, select_lessons
from workers.config import OldLogprobs
from workers.embedding_noise import EmbeddingNoise, noise_seed
from workers.lessons import LanguageObjective, Lesson, LessonBatch, Part, Share
from workers.micro_batches import one_by_one
from workers.model import Scorer, TokenScorer, load_language_model, score_tokens
from workers.records import (
    AlgorithmState,
    Batch,
    Experience,
    Group,
    Loss,
    ModelOutputs,
    PolicyObjective,
    TokenLogprobs,
    Totals,
    Update,
    WeightManifest,
)
from workers.student_worker import StudentWorker
from workers.tally import Tally, UpdateReport
from workers.train_worker import Pass, RankInfo, TrainerSetup, passes
from workers.tuned_weights import adapter_settings, adapter_tensors, shapes_of, whole_weights
from workers.tuning import adapter_off
from workers.weight_sync import SharedWeights, padded_bytes
from workers.whitening import whitened


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """One batch of rollouts, with all that models say of it before the first update."""

    updates: tuple[Update, ...]
    batch: Batch
    """Its blank row last."""
    outputs: ModelOutputs
    temperature: float
    own_logprobs: bool
    """Whether a loss takes its own log-probs, detached, for the old ones: right on a step's only update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Credited:
    """What the losses of a step read."""

    experience: Experience
    """With the action tokens that count."""
    totals: tuple[Totals, ...]
    """Of each update, counting the same tokens."""


class PolicyWorker(StudentWorker):
    """The model that is trained to answer."""

    def __init__(self, setup: TrainerSetup, rank: RankInfo) -> None:
        super().__init__(setup, rank)
        self._shared_weights = SharedWeights()
        self._version = 0
        self._adapter_is_served = served_rank(setup.tuning) > 0
        self._has_published = False
        self._published: WeightManifest | None = None

    def _load_model(self, setup: TrainerSetup) -> PreTrainedModel:
        return load_language_model(setup.model, seed=setup.seed)

    def _scorer(self, model: PreTrainedModel) -> Scorer:
        return TokenScorer(model)

    # ------------------------------------------------------------------ learning

    def look(
        self,
        updates: tuple[Update, ...],
        objective: PolicyObjective,
        temperature: float,
        reference_outputs: Mapping[str, np.ndarray],
        critic_outputs: Mapping[str, np.ndarray],
        *groups: Group,
    ) -> np.ndarray:
        """Take in the rows of `updates`, and what the other models said of them ([B, T] each, rows in that order).

        [B] how far each response is from the reference, summed over its action tokens: 0 unless the reward is charged.
        """
        batch = self._on_device(collate([row for update in updates for row in update.rows], groups))
        tensors = self._outputs_on_device({**reference_outputs, **critic_outputs})
        mode, passes = self._train.old_logprobs, len(updates) * self._train.epochs_per_step
        own = mode is OldLogprobs.AUTO and passes == 1 and not objective.needs.old_logprobs
        if objective.needs.reference and self._tuning.is_own_reference and not reference_outputs:
            with adapter_off(self._model):
                tensors["reference_logprobs_BT"] = self.logprobs(batch, temperature=temperature)
        if mode is OldLogprobs.ROLLOUT:
            tensors["old_logprobs_BT"] = batch.rollout_logprobs_BT
        elif not own:
            tensors["old_logprobs_BT"] = self.logprobs(batch, temperature=temperature)
        self._looked = _Looked(
            updates=updates,
            batch=batch,
            outputs=ModelOutputs(tensors=tensors),
            temperature=temperature,
            own_logprobs=own,
        )
        return objective.divergence(batch, self._looked.outputs).sum(dim=-1)[:-1].cpu().numpy()

    def credit(
        self, advantage_B: np.ndarray, objective: PolicyObjective, state: AlgorithmState
    ) -> Mapping[str, np.ndarray]:
        """Who gets the blame in these rows, token by token; `advantage_B` is what each response is worth.

        What a critic has to learn: {"returns_BT": [B, T]}; the advantages stay here.
        """
        looked = self._looked
        advantage_B = torch.cat([torch.tensor(advantage_B, dtype=torch.float32), torch.zeros(1)]).to(self._device)
        credit = objective.token_credit(looked.batch, looked.outputs, advantage_B, state)
        experience = Experience(batch=looked.batch, outputs=looked.outputs, credit=credit)
        totals = tuple(update.totals for update in looked.updates)
        if objective.needs.recount:
            experience = replace(experience, batch=replace(looked.batch, mask_BT=objective.counted(experience)))
            totals = self._recounted(experience.batch)
        if objective.whiten:
            advantages_BT = whitened(
                credit.advantages_BT,
                experience.batch.mask_BT,
                ddof=objective.whiten_ddof,
                all_reduce=self._all_reduce,
            )
            experience = replace(experience, credit=replace(credit, advantages_BT=advantages_BT))
        self._credited = _Credited(experience=experience, totals=totals)
        return {"returns_BT": credit.returns_BT[:-1].cpu().numpy()} if objective.needs.critic else {}

    def _recounted(self, batch: Batch) -> tuple[Totals, ...]:
        """Each update's totals, of the action tokens of this batch on all ranks."""
        updates = self._looked.updates
        masks = batch.mask_BT[:-1].split([len(update.rows) for update in updates])
        own = [torch.stack([mask_BT.sum(), mask_BT.any(dim=-1).sum()]) for mask_BT in masks]
        counts = self._all_reduce(torch.stack(own)).tolist()
        return tuple(
            replace(update.totals, tokens=tokens, sequences=sequences)
            for update, (tokens, sequences) in zip(updates, counts, strict=True)
        )

    def update(self, objective: PolicyObjective, state: AlgorithmState) -> UpdateReport:
        """Learn from the credited rows: one optimizer step for each of their updates, in each epoch."""
        looked, credited, epochs = self._looked, self._credited, self._train.epochs_per_step
        tally = Tally(num_updates=len(looked.updates) * epochs, num_compared=self._num_compared())
        for step in passes(looked.updates, epochs=epochs):

            def micro_loss(micro_batch: Batch, chosen: Sequence[int], step: Pass = step) -> Loss:
                policy = score_tokens(
                    self._engine,
                    micro_batch,
                    temperature=looked.temperature,
                    device=self._device,
                    entropy_gradient=objective.needs.entropy_gradient,
                )
                past = select_experience(credited.experience, chosen)
                if looked.own_logprobs:
                    past = _with_own_logprobs(past, policy)
                self._compare(policy, past, micro_batch, step, tally)
                return objective.policy_loss(policy, past, credited.totals[step.number], state)

            self._optimizer_step(looked.batch, one_by_one(step.rows), micro_loss, tally=tally)
        return tally.report()

    def _num_compared(self) -> int:
        """Action tokens, on all ranks, whose log-probs are compared with the rollout engine's: see `_compare`."""
        batch, updates = self._looked.batch, self._looked.updates
        if self._train.old_logprobs is OldLogprobs.ROLLOUT:
            updates = updates[:1]
        rows = sum(len(update.rows) for update in updates)
        return int(self._all_reduce(batch.sampled_by_BT(self._version)[:rows].sum()))

    def _compare(self, policy: TokenLogprobs, past: Experience, batch: Batch, step: Pass, tally: Tally) -> None:
        """Figures behind the invariants, once for each row that the start-of-step policy can still be asked about."""
        if self._train.old_logprobs is OldLogprobs.ROLLOUT:
            if step.is_first:
                tally.add_mismatch(policy.logprobs_BT, batch, version=self._version)
        elif step.epoch == 0:
            tally.add_mismatch(past.outputs.old_logprobs_BT, batch, version=self._version)
            if step.is_first and not self._looked.own_logprobs:
                tally.add_ratio(policy, past)

    # ------------------------------------------------------------------ offline stages

    def _lesson_loss(
        self,
        lessons: LessonBatch,
        totals: Totals,
        objective: LanguageObjective,
        reference_point: float,
        noise: EmbeddingNoise | None,
    ) -> Loss:
        policy = score_tokens(self._engine, lessons.batch, temperature=1.0, device=self._device, noise=noise)
        return objective.loss(policy, lessons, totals, reference_point)

    def _noise(self, share: Share, objective: LanguageObjective) -> EmbeddingNoise | None:
        alpha, update = objective.needs.embedding_noise, self._updates_done
        if not alpha:
            return None
        seeds = [
            noise_seed(self._seed, update, lesson.id, number)
            for lesson in share.lessons
            for number in range(len(lesson.examples))
        ]
        # The blank row at the end is nobody's lesson.
        return EmbeddingNoise(alpha=alpha, seeds=(*seeds, 0))

    def first_logprobs(self, lessons: tuple[Lesson, ...]) -> tuple[np.ndarray, ...]:
        """[T] float32 for each of their sequences, of the model before its first update: the reference of whatever is
        learned from here, without a second copy of the model."""
        if self._updates_done:
            raise RuntimeError(
                f"the policy has made {self._updates_done} updates: it is not its own reference any more"
            )
        rows = self._lessons_on_device(Share(lessons=lessons, reference=()))
        logprobs_BT = self.logprobs(rows.batch, temperature=1.0).cpu().numpy()
        lengths = [len(example.mask) for lesson in lessons for example in lesson.examples]
        # A view would hold the whole padded array.
        return tuple(row_T[:length].copy() for row_T, length in zip(logprobs_BT, lengths, strict=False))

    def _reference_point(self, lessons: LessonBatch, objective: LanguageObjective) -> float:
        """Mean summed log-ratio of the mismatched sequences of all ranks, before the update."""
        if not objective.needs.reference_point:
            return 0.0
        looked = select_lessons(lessons, [*lessons.rows(Part.MISMATCHED), len(lessons) - 1])
        logprobs_BT = self.logprobs(looked.batch, temperature=1.0)
        ratio_BT = (logprobs_BT - looked.reference_logprobs_BT).where(looked.batch.mask_BT, 0.0)
        own = ratio_BT.double().sum()
        summed, count = self._all_reduce(torch.stack([own, own.new_tensor(len(looked) - 1.0)])).tolist()
        return summed / count

    def logprobs(self, batch: Batch, *, temperature: float) -> Tensor:
        """[B, T] log-probs of a batch that ends with its blank row."""

        def score(micro_batch: Batch) -> Tensor:
            return score_tokens(self._engine, micro_batch, temperature=temperature, device=self._device).logprobs_BT

        return self._of_every_token(batch, score)

    # ------------------------------------------------------------------ weights

    def publish(self, version: int) -> WeightManifest | None:
        """Lay out in shared memory what rollout engines need to serve this version. A collective call under ZeRO-3;
        only rank 0 returns a manifest.

        All weights, those that are not learned only the first time; or those of an adapter that engines serve beside
        the base, and the base once, where it is not what the model's folder holds.
        """
        self._version = version
        # An engine that serves an adapter has loaded the base itself, unless that is not what the folder holds.
        sends_base = not self._adapter_is_served or (self._tuning.changes_base and not self._has_published)
        learned_only = self._has_published and not self._adapter_is_served
        self._has_published = True
        adapter = adapter_tensors(self._model, gather=self._gathered) if self._adapter_is_served else {}
        weights = (
            whole_weights(self._model, merged=not adapter, learned_only=learned_only, gather=self._gathered)
            if sends_base
            else iter(())
        )
        if self._rank.rank != 0:
            for _ in weights:
                pass
            return None
        self._published = self._shared_weights.write(
            chain(weights, adapter.items()),
            version=version,
            num_bytes=padded_bytes(chain(shapes_of(self._model) if sends_base else (), adapter.values())),
            adapter=adapter_settings(self._model) if adapter else "",
            rest_stays=learned_only,
        )
        return self._published

    def published(self) -> WeightManifest | None:
        """What was laid out last, for an engine that replaces another; None before the first version."""
        return self._published


def _with_own_logprobs(past: Experience, policy: TokenLogprobs) -> Experience:
    """On a step's only update nothing was recomputed: its log-probs, detached, are the old ones."""
    tensors = {**past.outputs.tensors, "old_logprobs_BT": policy.logprobs_BT.detach()}
    return replace(past, outputs=ModelOutputs(tensors=tensors))
