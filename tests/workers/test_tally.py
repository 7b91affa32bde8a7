"""The figures of a step, against brute force; and no NaN hides behind a comparison."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from workers.records import Batch, Credit, Experience, Loss, ModelOutputs, TokenLogprobs
from workers.tally import Tally

MASK = torch.tensor([[True, True, False], [True, False, False]])
OLD = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -9.0, -9.0]])
ROLLOUT = torch.tensor([[-1.5, -1.75, math.nan], [-0.5, math.nan, math.inf]])
VERSION = [[7, 7, 0], [7, 0, 0]]
GAPS = [0.5, -0.25, 0.0]


def experience(rollout: torch.Tensor = ROLLOUT, mask: torch.Tensor = MASK) -> Experience:
    batch = Batch(
        context=tuple(torch.zeros(5, dtype=torch.long) for _ in mask),
        prompt_lengths=(2,) * len(mask),
        prompts=tuple(range(len(mask))),
        token_ids_BT=torch.zeros(mask.shape, dtype=torch.long),
        mask_BT=mask,
        rollout_logprobs_BT=rollout,
        version_BT=torch.tensor(VERSION)[: len(mask)],
        reward_B=torch.zeros(len(mask)),
        prompt_tokens_B=mask.sum(dim=-1),
    )
    outputs = ModelOutputs(tensors={"old_logprobs_BT": OLD})
    credit = Credit(advantages_BT=torch.zeros(mask.shape), returns_BT=torch.zeros(mask.shape))
    return Experience(batch=batch, outputs=outputs, credit=credit)


def policy(logprobs: torch.Tensor) -> TokenLogprobs:
    return TokenLogprobs(logprobs_BT=logprobs, entropy_BT=torch.zeros(logprobs.shape))


def add_mismatch(tally: Tally, past: Experience, *, version: int = 7) -> None:
    tally.add_mismatch(past.outputs.old_logprobs_BT, past.batch, version=version)


def test_the_mismatch_is_that_of_a_loop_over_action_tokens_whatever_masked_positions_hold() -> None:
    tally = Tally(num_updates=1, num_compared=12)
    add_mismatch(tally, experience())
    report = tally.report()
    assert report.contributions["logprob_gap_mean"] == pytest.approx(sum(map(abs, GAPS)) / 12)
    assert report.contributions["logprob_gap_k3"] == pytest.approx(sum(math.exp(g) - g - 1 for g in GAPS) / 12)
    assert report.maxima["logprob_gap_max"] == 0.5


@pytest.mark.parametrize("first_row", [[6, 6, 0], [6, 7, 0], [7, 6, 0]])
def test_responses_that_older_weights_had_a_part_in_have_no_say_in_the_mismatch(first_row: list[int]) -> None:
    """Whoever reads on from another's keys and values says something else than a trainer does."""
    past = experience(rollout=torch.tensor([[-1.5, -1.75, math.nan], [-0.6, math.nan, math.inf]]))
    mixed = replace(past.batch, version_BT=torch.tensor([first_row, [7, 0, 0]]))
    tally = Tally(num_updates=1, num_compared=1)
    add_mismatch(tally, replace(past, batch=mixed))
    assert tally.report().contributions["logprob_gap_mean"] == pytest.approx(0.1)
    assert tally.report().maxima["logprob_gap_max"] == pytest.approx(0.1)
    nothing = Tally(num_updates=1, num_compared=0)
    add_mismatch(nothing, past, version=8)
    assert nothing.report().contributions["logprob_gap_mean"] == 0.0


def test_no_action_token_means_no_maximum_and_no_share() -> None:
    tally = Tally(num_updates=1, num_compared=12)
    nothing = experience(mask=torch.zeros_like(MASK))
    add_mismatch(tally, nothing)
    tally.add_ratio(policy(OLD), nothing)
    assert tally.report().maxima == {}
    assert tally.report().contributions == {"logprob_gap_mean": 0.0, "logprob_gap_k3": 0.0}


def test_a_batch_without_a_single_action_token_has_figures_of_zero() -> None:
    tally = Tally(num_updates=1, num_compared=0)
    add_mismatch(tally, experience(mask=torch.zeros_like(MASK)))
    assert tally.report().contributions == {"logprob_gap_mean": 0.0, "logprob_gap_k3": 0.0}


def test_a_ratio_of_one_has_no_deviation_and_others_have_theirs() -> None:
    tally = Tally(num_updates=1, num_compared=12)
    tally.add_ratio(policy(OLD.clone()), experience())
    assert tally.report().maxima["ratio_deviation"] == 0.0
    # Half as likely is further from 1 than 1.25 times as likely; the masked position is nobody's business.
    moved = OLD + torch.tensor([[math.log(0.5), math.log(1.25), 5.0], [0.0, 5.0, math.nan]])
    tally.add_ratio(policy(moved), experience())
    assert tally.report().maxima["ratio_deviation"] == pytest.approx(0.5)


@pytest.mark.parametrize("nan_first", [True, False])
def test_nan_wins_every_maximum_whenever_it_comes(nan_first: bool) -> None:
    broken = ROLLOUT.clone()
    broken[1, 0] = math.nan
    tally = Tally(num_updates=1, num_compared=12)
    for rollout in (broken, ROLLOUT) if nan_first else (ROLLOUT, broken):
        add_mismatch(tally, experience(rollout))
    assert math.isnan(tally.report().maxima["logprob_gap_max"])


def test_micro_batches_add_up_and_updates_are_averaged() -> None:
    tally = Tally(num_updates=2, num_compared=12)
    for value in (1.0, 2.0, 5.0):
        tally.add_loss(Loss(value=torch.tensor(value, requires_grad=True), metrics={"kl": torch.tensor(value / 10)}))
    assert tally.report().contributions == pytest.approx({"loss": 4.0, "kl": 0.4})


def test_figures_that_ranks_share_are_contributed_once_and_every_skip_is_counted() -> None:
    first, second = (Tally(num_updates=2, num_compared=12) for _ in range(2))
    for skipped in (True, False):
        first.add_step(gradient_norm=3.0, learning_rate=0.5, skipped=skipped, is_first_rank=True)
        second.add_step(gradient_norm=3.0, learning_rate=0.5, skipped=skipped, is_first_rank=False)
    assert first.report().contributions == {"gradient_norm": 3.0, "learning_rate": 0.5}
    assert second.report().contributions == {}
    assert first.report().skipped_updates == second.report().skipped_updates == 1


def test_action_tokens_add_up() -> None:
    tally = Tally(num_updates=1, num_compared=12)
    tally.add_tokens(3)
    tally.add_tokens(4)
    assert tally.report().action_tokens == 7
