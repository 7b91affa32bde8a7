"""What the model said of the data before its first update: computed once, kept beside the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from engine.config import Config
from engine.fingerprint import fingerprint
from engine.tracking import Tracker
from workers.lessons import Example, Lesson, Share
from workers.team import Workers

SEQUENCES_AT_ONCE = 256
FILE_NAME = "reference_logprobs.safetensors"
MODEL = "model"
"""What the file says it is of."""


class References:
    """Log-probs of every sequence that a run will look at, of the model that it starts from.

    The model that learns is its own reference until it learns: no second copy is ever loaded. With adapters, merged
    ones included, that is the base with the new adapter adding nothing.
    """

    def __init__(self, config: Config) -> None:
        self._file = config.run_folder / FILE_NAME
        # A run that ended before its first checkpoint may begin again as another one.
        self._model = fingerprint((config.model, config.tuning, config.run.seed))
        self._logprobs = _kept(self._file, self._model)

    def complete(self, lessons: Iterable[Lesson], workers: Workers, tracker: Tracker, *, ranks: int) -> None:
        """Ask for what is missing. To be called before the policy learns anything, or loads what it has learned."""
        examples = {key_of(example): example for lesson in lessons for example in lesson.examples}
        missing = [(key, example) for key, example in examples.items() if key not in self._logprobs]
        if not missing:
            return
        tracker.say(f"asking the model, before it learns, about {len(missing)} sequences")
        at_once = SEQUENCES_AT_ONCE * ranks
        for done in range(0, len(missing), at_once):
            with tracker.phase(f"reference, {done} of {len(missing)} sequences"):
                self._ask(missing[done : done + at_once], workers, ranks=ranks)
        self._save()

    def _ask(self, chunk: Sequence[tuple[str, Example]], workers: Workers, *, ranks: int) -> None:
        shares = [chunk[rank::ranks] for rank in range(ranks)]
        answers = workers.policy.first_logprobs(
            [tuple(Lesson(id=key, examples=(example,), margin=0.0) for key, example in share) for share in shares]
        )
        for share, answer in zip(shares, answers, strict=True):
            self._logprobs |= {key: logprobs for (key, _), logprobs in zip(share, answer, strict=True)}

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(".unfinished")
        save_file(self._logprobs, unfinished, metadata={MODEL: self._model})
        unfinished.replace(self._file)

    def share(self, lessons: Sequence[Lesson]) -> Share:
        """Lessons with what the reference says of them."""
        return Share(
            lessons=tuple(lessons),
            reference=tuple(self._logprobs[key_of(example)] for lesson in lessons for example in lesson.examples),
        )


def _kept(file: Path, model: str) -> dict[str, np.ndarray]:
    """What an earlier process of the run has asked for; nothing if that was of another model."""
    if not file.exists():
        return {}
    with safe_open(file, framework="numpy") as tensors:
        if tensors.metadata().get(MODEL) != model:
            return {}
        return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118


def key_of(example: Example) -> str:
    """The same for the same tokens after the same prompt."""
    tokens = np.array((example.prompt_length, *example.token_ids), dtype=np.int64)
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).hexdigest()
