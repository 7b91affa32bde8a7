"""The reward worker: rollouts in, a scored group and its summary out."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from asked import generated, rollouts

from engine.judging import reward_specs
from rewards.load import RewardError
from rewards.score import Failure, FailureKind, Score
from workers.config import RewardConfig
from workers.records import GreedyOutcome, Group
from workers.reward_worker import RewardWorker


def written(folder: Path, text: str) -> str:
    file = folder / "mine.py"
    file.write_text(text, encoding="utf-8")
    return f"{file}:f"


def worker_of(function: str, *, timeout_s: float = 5.0, **arguments: object) -> RewardWorker:
    config = RewardConfig(function=function, arguments=arguments, timeout_s=timeout_s)
    return RewardWorker(reward_specs(config), (), config)


def test_a_group_is_scored_and_summed_up() -> None:
    with contextlib.closing(worker_of("rewards.number:exact")) as worker:
        made = generated("46", "45", "46 ")
        summary = worker.score(made)
    assert summary.draw == 7 and summary.greedy is None and len(summary.judgements) == 3
    assert summary.judgements[0] == Score(total=1.0, parts={"exact": 1.0})
    np.testing.assert_array_equal(summary.score_G, [1.0, 0.0, 1.0])
    assert summary.failures() == {} and summary.part_means() == {"exact": pytest.approx(2 / 3)}


def test_a_hung_sibling_is_left_out_of_the_summary_and_is_no_zero(tmp_path: Path) -> None:
    source = written(tmp_path, "def f(response, answer):\n    while response == 'hang': pass\n    return 1\n")
    with contextlib.closing(worker_of(source, timeout_s=1.0)) as worker:
        summary = worker.score(generated("46", "hang", "45"))
    np.testing.assert_array_equal(summary.score_G, [1.0, np.nan, 1.0])
    assert summary.part_means() == {"f": 1.0}
    [(sample, failure)] = summary.failures().items()
    assert isinstance(failure, Failure) and failure.kind is FailureKind.TIMEOUT
    assert summary.judgements[sample] == failure and sample == 1


def test_the_greedy_response_is_judged_beside_the_siblings_and_is_none_of_them() -> None:
    with contextlib.closing(worker_of("rewards.number:exact")) as worker:
        made = generated("45", "44", greedy="46")
        summary = worker.score(made)
    assert summary.judgements[2] == Score(total=1.0, parts={"exact": 1.0})
    assert summary.greedy == GreedyOutcome(score=1.0, action_tokens=2, truncated=False)
    np.testing.assert_array_equal(summary.score_G, [0.0, 0.0])
    assert summary.part_means() == {"exact": 0.0} and summary.length_G.tolist() == [2, 2]
    assert summary.failures() == {}


def test_a_greedy_response_that_cannot_be_judged_is_counted_and_has_no_score(tmp_path: Path) -> None:
    source = written(tmp_path, "def f(response, answer):\n    if response == 'bad': raise ValueError\n    return 1\n")
    with contextlib.closing(worker_of(source)) as worker:
        summary = worker.score(generated("46", "45", greedy="bad"))
    np.testing.assert_array_equal(summary.score_G, [1.0, 1.0])
    assert summary.greedy is not None and np.isnan(summary.greedy.score)
    [(sample, failure)] = summary.failures().items()
    assert isinstance(failure, Failure) and sample == 2


@pytest.mark.parametrize("stray", ["greedy", "sibling"])
def test_rollouts_of_two_draws_are_no_group(stray: str) -> None:
    own, others = rollouts("46"), rollouts("46", draw=8)
    with pytest.raises(ValueError, match=r"not of draws \[7, 8\]"):
        if stray == "greedy":
            Group(rollouts=own, greedy=others[0], prompt_text="")
        else:
            Group(rollouts=own + others, greedy=None, prompt_text="")


def test_a_judgement_too_few_is_not_taken_for_the_next_ones() -> None:
    with pytest.raises(ValueError, match="1 judgements of 2 responses"):
        generated("46", "45").summary([Score(total=1.0, parts={})], judging_s=0.0)


def test_the_reward_gets_the_row_and_the_arguments(tmp_path: Path) -> None:
    source = written(tmp_path, "def f(*, response, answer, a, scale):\n    return scale * a * (response == answer)\n")
    with contextlib.closing(worker_of(source, scale=0.5)) as worker:
        summary = worker.score(generated("46", "45", row={"a": 12, "b": 34}))
    np.testing.assert_array_equal(summary.score_G, [6.0, 0.0])


def test_an_argument_that_is_also_a_column_is_an_error() -> None:
    with contextlib.closing(worker_of("rewards.number:exact", a=1.0)) as worker:
        assert worker.score(generated("46", row={"b": 34})).score_G.tolist() == [1.0]
        with pytest.raises(RewardError, match="both have a"):
            worker.score(generated("46", row={"a": 12}))


def test_the_file_is_not_needed_where_the_worker_is(tmp_path: Path) -> None:
    source = written(tmp_path, "def f(response, answer):\n    return 0.25\n")
    config = RewardConfig(function=source)
    specs = reward_specs(config)
    Path(source.rpartition(":")[0]).unlink()
    with contextlib.closing(RewardWorker(specs, (), config)) as worker:
        assert worker.score(generated("46")).score_G.tolist() == [0.25]
