"""A run of ours whose responses have recorded lengths: `engine.main` with every worker as it is, but for that.

    HELIOSTAT_BENCH_LENGTHS=lengths.json python -m tests.bench._forced_lengths algo=grpo ...

The file holds a list of lengths for each draw, one a sample. An end token ends nothing: it is a token as others are.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from workers import rollout_actor
from workers.rollout_worker import CompletionRequest
from workers.vllm_engine import VLLMEngine

LENGTHS_ENV = "HELIOSTAT_BENCH_LENGTHS"


def forced(request: CompletionRequest, lengths: list[list[int]]) -> CompletionRequest:
    """The same, as long as is written for its draw and sample, which its id begins with."""
    draw, sample, *_ = request.id.split("/")
    sampling = replace(request.sampling, max_tokens=lengths[int(draw)][int(sample)])
    return replace(request, sampling=sampling)


class ForcedEngine(VLLMEngine):
    """Every response is as long as the file says."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        super().__init__(*arguments, **settings)
        self._lengths = json.loads(Path(os.environ[LENGTHS_ENV]).read_text())
        self._end_token_ids = []
        self._sampling_params = partial(self._sampling_params, ignore_eos=True)

    def add(self, request: CompletionRequest) -> None:
        super().add(forced(request, self._lengths))


class ForcedRolloutActor(rollout_actor.RolloutActor):
    """The rollout actor, around such an engine."""

    def __init__(self, *arguments: object) -> None:
        rollout_actor.engine_class = lambda kind: ForcedEngine
        super().__init__(*arguments)


def lognormal(count: int, *, sigma: float, clipped: float, most: int, seed: int) -> list[int]:
    """`count` lengths at the middles of equal shares of a lognormal whose largest `clipped` share is cut off at `most`,
    in random order: every step has the same ones.

    >>> sorted(lognormal(4, sigma=0.8, clipped=0.2, most=100, seed=0))
    [20, 39, 65, 100]
    """
    from statistics import NormalDist

    normal = NormalDist()
    middles = [normal.inv_cdf((place + 0.5) / count) - normal.inv_cdf(1.0 - clipped) for place in range(count)]
    lengths = [max(1, min(most, int(most * np.exp(sigma * middle)))) for middle in middles]
    return np.random.default_rng(seed).permutation(lengths).tolist()


def start(argv: list[str], run: Callable[[list[str]], int]) -> int:
    from workers import team

    team.RolloutActor = ForcedRolloutActor
    return run(argv)


if __name__ == "__main__":
    from engine.main import run
    from tests.bench import _forced_lengths  # the workers import it by this name

    sys.exit(_forced_lengths.start(sys.argv[1:], run))
