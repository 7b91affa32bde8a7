"""One rank of a model that learns from a data set: the part that writing and judging models share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch

from workers.batches import append_blank_lesson, collate_lessons, lessons_on_device, select_lessons, units_of
from workers.embedding_noise import EmbeddingNoise
from workers.exporting import write_model
from workers.lessons import LessonBatch, Objective, Part, Share
from workers.records import Batch, Loss, Totals
from workers.tally import Tally, UpdateReport
from workers.train_worker import TrainWorker


class StudentWorker(TrainWorker):
    """Learns from lessons, and is written as a Hugging Face folder."""

    def fit(self, share: Share, totals: Totals, objective: Objective) -> UpdateReport:
        """One optimizer step on this rank's lessons; `totals` count all ranks'."""
        lessons = self._lessons_on_device(share)
        point = self._reference_point(lessons, objective)
        noise = self._noise(share, objective)
        tally = Tally(num_updates=1)

        def micro_loss(micro_batch: Batch, chosen: Sequence[int]) -> Loss:
            own_noise = noise and noise.select(chosen)
            return self._lesson_loss(select_lessons(lessons, chosen), totals, objective, point, own_noise)

        self._optimizer_step(lessons.batch, _learned(lessons), micro_loss, tally=tally)
        return tally.report()

    @torch.no_grad()
    def assess(self, share: Share, totals: Totals, objective: Objective) -> UpdateReport:
        """The objective's figures on lessons that are not learned from."""
        lessons = self._lessons_on_device(share)
        point = self._reference_point(lessons, objective)
        tally = Tally(num_updates=1)
        with self._looking():
            for chosen in self._micro_batches(lessons.batch, _learned(lessons)):
                picked = select_lessons(lessons, chosen)
                tally.add_tokens(int(picked.batch.mask_BT.sum()))
                tally.add_loss(self._lesson_loss(picked, totals, objective, point, None))
        return tally.report()

    @abstractmethod
    def _lesson_loss(
        self,
        lessons: LessonBatch,
        totals: Totals,
        objective: Objective,
        reference_point: float,
        noise: EmbeddingNoise | None,
    ) -> Loss: ...

    def _reference_point(self, lessons: LessonBatch, objective: Objective) -> float:
        """See `OfflineNeeds.reference_point`; 0 for an objective that asks for none."""
        return 0.0

    def _noise(self, share: Share, objective: Objective) -> EmbeddingNoise | None:
        """See `OfflineNeeds.embedding_noise`; of every row, in this update."""
        return None

    def _lessons_on_device(self, share: Share) -> LessonBatch:
        """Its blank row last."""
        return lessons_on_device(append_blank_lesson(collate_lessons(share.lessons, share.reference)), self._device)

    def export(self, folder: Path) -> None:
        """Write a plain Hugging Face folder (weights and architecture; the caller adds the tokenizer); of a model that
        learns an adapter, the adapter's, in PEFT's layout. A collective call under ZeRO-3."""
        write_model(
            self._model,
            folder,
            as_adapter=self._tuning.has_adapter,
            gather=self._gathered,
            is_writer=self._rank.rank == 0,
        )


def _learned(lessons: LessonBatch) -> list[tuple[int, ...]]:
    """The rows that are learned from, by lesson: all but the mismatched ones and the blank last one."""
    rows = [row for row, part in enumerate(lessons.parts[:-1]) if part is not Part.MISMATCHED]
    return units_of(lessons, rows)
