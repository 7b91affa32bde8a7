"""What the model said of the data before its first update: computed once, kept beside the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from engine.tracking import Tracker
from workers.lessons import Example, Lesson, Share
from workers.team import Workers

SEQUENCES_AT_ONCE = 256
FILE_NAME = "reference_logprobs.safetensors"


class References:
    """Log-probs of every sequence that a run will look at, of the model that it starts from.

    The model that learns is its own reference until it learns: no second copy is ever loaded. With adapters, merged
    ones included, that is the base with the new adapter adding nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_NAME
        self._logprobs: dict[str, np.ndarray] = load_file(self._file) if self._file.exists() else {}

    def complete(self, lessons: Iterable[Lesson], workers: Workers, tracker: Tracker, *, ranks: int) -> None:
        """Ask for what is missing. To be called before the policy learns anything, or loads what it has learned."""
        examples = {key_of(example): example for lesson in lessons for example in lesson.examples}
        missing = [(key, example) for key, example in examples.items() if key not in self._logprobs]
        if not missing:
            return
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
        save_file(self._logprobs, unfinished)
        unfinished.replace(self._file)

    def share(self, lessons: Sequence[Lesson]) -> Share:
        """Lessons with what the reference says of them."""
        return Share(
            lessons=tuple(lessons),
            reference=tuple(self._logprobs[key_of(example)] for lesson in lessons for example in lesson.examples),
        )


def key_of(example: Example) -> str:
    """The same for the same tokens after the same prompt."""
    tokens = np.array((example.prompt_length, *example.token_ids), dtype=np.int64)
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).hexdigest()
