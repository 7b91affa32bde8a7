"""What the tests of the trainers share: the tiny policy, and processes that are started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tiny
from trainers import TrainerProcesses

from tests.one_thread import one_thread  # noqa: F401  a fixture


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.write_policy(tmp_path_factory.mktemp("policy"), tied=False)


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, TrainerProcesses]]:
    """Trainers of one rank and of two: both start at once, and all tests use them."""
    logs = tmp_path_factory.mktemp("trainers")
    trainers = {ranks: TrainerProcesses(ranks, logs) for ranks in (1, 2)}
    yield trainers
    for trainer in trainers.values():
        trainer.close()
