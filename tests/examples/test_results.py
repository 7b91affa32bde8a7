"""What the committed figures of examples/algorithms show: each claim of its page, checked against them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from runs import REPOSITORY

from examples.algorithms.compare import ALGORITHMS

FOLDER = REPOSITORY / "examples" / "algorithms"


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text())


ROWS = read("results.json")
every_row = pytest.mark.parametrize("name", ALGORITHMS)


def test_every_algorithm_has_a_row() -> None:
    assert list(ROWS) == list(ALGORITHMS)


@every_row
def test_it_reaches_nine_tenths_of_the_best_in_as_many_steps(name: str) -> None:
    best = max(row["final"] for row in ROWS.values())
    assert len({row["steps"] for row in ROWS.values()}) == 1
    assert ROWS[name]["final"] >= 0.9 * best


@every_row
def test_its_control_learns_nothing(name: str) -> None:
    row = ROWS[name]
    assert row["control_final"] <= row["start"] + 3 * row["control"]["final_standard_error"]
    assert row["final"] > row["control_final"] + 0.3


@every_row
def test_a_row_says_how_it_was_made(name: str) -> None:
    row = ROWS[name]
    assert f"--algorithms {name}" in row["again"]
    for which in ("run", "control"):
        origin = row[which]["origin"]
        assert f"algo={name}" in shlex.split(origin["command"])
        assert origin["git"] and not origin["git"].endswith("-dirty")
        assert origin["config"] and "seed" in origin


def test_remax_asks_for_one_greedy_response_a_prompt() -> None:
    greedy = ROWS["remax"]["run"]["figures"]["reward/greedy_responses"]
    assert (greedy["min"], greedy["max"]) == (32, 32)
    assert ROWS["grpo"]["run"]["figures"]["reward/greedy_responses"]["max"] == 0


def test_dapo_learns_from_no_group_whose_siblings_scored_the_same() -> None:
    assert ROWS["dapo"]["run"]["figures"]["reward/uniform_groups_share"]["max"] == 0
    assert ROWS["grpo"]["run"]["figures"]["reward/uniform_groups_share"]["mean"] > 0.1


def test_ppos_critic_gets_to_know_what_is_to_come() -> None:
    critic = read("critic.json")
    loss, explained = critic["critic/value_loss"], critic["critic/explained_variance"]
    assert loss["last_fifth"] < loss["first_fifth"]
    assert explained["last_fifth"] > explained["first_fifth"]
    assert explained["last_fifth"] > 0.1
    page = (FOLDER / "README.md").read_text()
    assert f"from {loss['first_fifth']:.3f} to {loss['last_fifth']:.3f}" in page
    assert f"to {explained['last_fifth']:.2f}" in page


def test_gspo_clips_far_more_tokens_than_grpo_on_every_seed() -> None:
    """Each step has eight updates, four in each of two epochs."""
    clipping = read("clipping.json")
    for seed in ("seed 0", "seed 1", "seed 2"):
        assert clipping["gspo"][seed]["clipped_share"] > 5 * clipping["plain"][seed]["clipped_share"] > 0


def test_the_page_says_what_a_higher_ceiling_does_to_entropy_on_sums() -> None:
    """The papers' sign is 1; on this task it is -1, and the page says so."""
    assert read("clipping.json")["signs"]["clip_higher_keeps_more_entropy"] == [-1, -1, -1]
    assert "leaves *less* entropy here, on every seed" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", ["curves.svg", "README.md"])
def test_picture_and_table_are_drawn_from_them(name: str) -> None:
    from examples.algorithms.compare import markdown, picture

    drawn = picture(ROWS) if name.endswith("svg") else markdown(ROWS)
    assert drawn in Path(FOLDER / name).read_text()
