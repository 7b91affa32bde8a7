"""The reference policy says what the plain model says, row by row, however rows are cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny import count, plain_logprobs, rollout_of, toy_groups, toy_rows, write_policy
from transformers import AutoModelForCausalLM

from workers.config import Device, ModelConfig
from workers.frozen_worker import FrozenWorker
from workers.records import Update

TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield write_policy(tmp_path_factory.mktemp("policy"), tied=False)
    torch.set_num_threads(threads)


def two_updates() -> tuple[Update, ...]:
    groups = toy_groups()
    return tuple(Update(rows=rows, totals=count(rows, groups)) for rows in (toy_rows((2, 0))[::-1], toy_rows((1,))))


@pytest.mark.parametrize("budget", [1, 37, 10**6])
def test_outputs_are_those_of_each_row_alone_in_the_order_of_updates(folder: str, budget: int) -> None:
    groups, updates = toy_groups(), two_updates()
    worker = FrozenWorker(ModelConfig(path=folder), Device.CPU, 0, budget)
    # The order in which groups arrive is nobody's promise.
    outputs = worker.reference_outputs(updates, TEMPERATURE, *reversed(groups))
    whole_BT = outputs["reference_logprobs_BT"]
    rows = [row for update in updates for row in update.rows]
    assert whole_BT.shape == (len(rows), max(len(rollout_of(row, groups).token_ids) for row in rows))
    assert whole_BT.dtype == np.float32
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    for number, row in enumerate(rows):
        rollout = rollout_of(row, groups)
        prompt = rollout.prompt.token_ids
        alone = plain_logprobs(plain, [*prompt, *rollout.token_ids.tolist()], len(prompt), TEMPERATURE)
        np.testing.assert_allclose(whole_BT[number, : len(alone)], alone.detach().numpy(), atol=1e-6, rtol=1e-6)
        assert not whole_BT[number, len(alone) :].any()


def test_a_frozen_model_says_the_same_twice_and_needs_no_gradient(folder: str) -> None:
    groups, updates = toy_groups(), two_updates()
    worker = FrozenWorker(ModelConfig(path=folder), Device.CPU, 0, 37)
    one, two = (worker.reference_outputs(updates, TEMPERATURE, *groups)["reference_logprobs_BT"] for _ in range(2))
    assert np.array_equal(one, two)
    assert all(parameter.grad is None for parameter in worker._scorer.parameters())
