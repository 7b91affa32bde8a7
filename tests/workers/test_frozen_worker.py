"""The reference policy says what the plain model says, row by row, however rows are cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import count, plain_logprobs, rollout_of, toy_groups, toy_rows, write_policy
from transformers import AutoModelForCausalLM

from workers.batches import collate
from workers.config import Device, ModelConfig, Precision
from workers.frozen_worker import FrozenWorker
from workers.model import TokenScorer, score_tokens
from workers.records import Update, WeightManifest
from workers.weight_sync import SharedWeights, WeightSyncError, padded_bytes

TEMPERATURE = 0.7


def two_updates() -> tuple[Update, ...]:
    groups = toy_groups()
    return tuple(Update(rows=rows, totals=count(rows, groups)) for rows in (toy_rows((2, 0))[::-1], toy_rows((1,))))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("budget", [1, 37, 10**6])
def test_outputs_are_those_of_each_row_alone_in_the_order_of_updates(folder: str, budget: int, packing: bool) -> None:
    groups, updates = toy_groups(), two_updates()
    worker = FrozenWorker(ModelConfig(path=folder), Device.CPU, 0, budget, packing)
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


# ----------------------------------------------------------------------------- following the policy


def reference(folder: str, **model: object) -> FrozenWorker:
    return FrozenWorker(ModelConfig(path=folder, **model), Device.CPU, 0, 10**6)


def says(worker: FrozenWorker) -> np.ndarray:
    return worker.reference_outputs(two_updates(), TEMPERATURE, *toy_groups())["reference_logprobs_BT"]


def weights_of(worker: FrozenWorker) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in worker._scorer.model.named_parameters()}


def moved_policy(folder: str) -> torch.nn.Module:
    """A policy that has learned something, as the trainer holds it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def published(shared: SharedWeights, model: torch.nn.Module) -> WeightManifest:
    weights = dict(model.named_parameters())
    return shared.write(weights.items(), version=4, num_bytes=padded_bytes(weights.values()))


@pytest.mark.parametrize("tied", [False, True])
def test_a_reference_that_follows_all_the_way_says_exactly_what_the_policy_says(tmp_path: Path, tied: bool) -> None:
    folder, shared = write_policy(tmp_path, tied=tied), SharedWeights()
    policy, worker = moved_policy(folder), reference(folder)
    before = says(worker)
    worker.follow(published(shared, policy), share=1.0)
    rows = [row for update in two_updates() for row in update.rows]
    with torch.inference_mode():
        batch = collate(rows, toy_groups())
        own = score_tokens(TokenScorer(policy), batch, temperature=TEMPERATURE, device=torch.device("cpu"))
    assert np.array_equal(says(worker), own.logprobs_BT.numpy())
    assert np.abs(says(worker) - before).max() > 0.1


def test_a_share_of_the_way_is_the_linear_mix_and_adds_up(folder: str) -> None:
    shared, policy, worker = SharedWeights(), moved_policy(folder), reference(folder)
    start, goal = weights_of(worker), dict(policy.named_parameters())
    manifest = published(shared, policy)
    for left in (0.75, 0.75**2):
        worker.follow(manifest, share=0.25)
        for name, found in weights_of(worker).items():
            torch.testing.assert_close(found, left * start[name] + (1 - left) * goal[name], atol=1e-6, rtol=1e-6)


def test_a_bfloat16_reference_follows_all_the_way(folder: str) -> None:
    shared, policy = SharedWeights(), moved_policy(folder).to(torch.bfloat16)
    worker = reference(folder, precision=Precision.BFLOAT16)
    worker.follow(published(shared, policy), share=1.0)
    assert all(torch.equal(found, dict(policy.named_parameters())[n]) for n, found in weights_of(worker).items())


def test_a_reference_that_has_moved_comes_back_from_its_file(folder: str, tmp_path: Path) -> None:
    shared, worker = SharedWeights(), reference(folder)
    worker.follow(published(shared, moved_policy(folder)), share=0.25)
    worker.save(tmp_path)
    resumed = reference(folder)
    assert not np.array_equal(says(resumed), says(worker))
    resumed.load(tmp_path)
    assert np.array_equal(says(resumed), says(worker))


def test_weights_that_did_not_arrive_as_sent_are_an_error(folder: str) -> None:
    shared, worker = SharedWeights(), reference(folder)
    manifest = published(shared, moved_policy(folder))
    with pytest.raises(WeightSyncError, match="version 4"):
        worker.follow(replace(manifest, checksum="0" * 16), share=1.0)
