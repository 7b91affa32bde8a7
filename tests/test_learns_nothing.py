"""The default run's controls: without a signal, or without a step, nothing is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Finished, run_main


def _assert_did_not_rise(run: Finished) -> None:
    assert run.exit_code == 0, run.output
    assert run.summary["held_out_after"] <= run.summary["held_out_before"] + 0.05  # on 800 samples


def test_shuffled_rewards_teach_nothing(tmp_path: Path) -> None:
    """Rewards that responses to earlier prompts earned."""
    run = run_main("algo._target_=examples.algorithms.shuffled.ShuffledGRPO", folder=tmp_path, name="shuffled")
    _assert_did_not_rise(run)


def _assert_stood_still(run: Finished) -> None:
    _assert_did_not_rise(run)
    assert len({row["weights_checksum"] for row in run.steps}) == 1
    assert run.summary["held_out_after"] == run.summary["held_out_before"]


def test_a_learning_rate_of_zero_leaves_every_weight_as_it_was(tmp_path: Path) -> None:
    """Ten steps: where no step moves a bit, fifty do not either."""
    _assert_stood_still(run_main("train.learning_rate=0", "run.steps=10", folder=tmp_path, name="still"))


@pytest.mark.slow
def test_nor_do_all_steps_of_the_default_run(tmp_path: Path) -> None:
    _assert_stood_still(run_main("train.learning_rate=0", folder=tmp_path, name="still"))
