"""One rank of a reward model's trainer: a language model's body with a head that gives one number a text."""

from __future__ import annotations

from transformers import PreTrainedModel

from workers.embedding_noise import EmbeddingNoise
from workers.lessons import LessonBatch, ScoreObjective
from workers.model import Scorer, TextScorer, load_value_model, score_texts
from workers.records import Loss, Totals
from workers.student_worker import StudentWorker
from workers.train_worker import TrainerSetup


class RewardModelWorker(StudentWorker):
    """The model that is trained to judge."""

    def _load_model(self, setup: TrainerSetup) -> PreTrainedModel:
        return load_value_model(setup.model)

    def _scorer(self, model: PreTrainedModel) -> Scorer:
        return TextScorer(model)

    def _lesson_loss(
        self,
        lessons: LessonBatch,
        totals: Totals,
        objective: ScoreObjective,
        reference_point: float,
        noise: EmbeddingNoise | None,
    ) -> Loss:
        return objective.loss(score_texts(self._engine, lessons.batch, device=self._device), lessons, totals)
