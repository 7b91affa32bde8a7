"""What the tests of the trainers share: the tiny policy, and processes that are started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tiny
import torch
from trainers import TrainerProcesses


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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads of so small a model only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
