"""The arithmetic reward: exactly the answer, or nothing."""

from __future__ import annotations

import pytest

from rewards.number import exact


@pytest.mark.parametrize("response", ["46", " 46", "46\n", "\t46 \n"])
def test_the_answer_scores_one_whatever_white_space_is_around_it(response: str) -> None:
    assert exact(response, "46") == 1.0


@pytest.mark.parametrize("response", ["", " ", "4", "6", "466", "046", "4 6", "46.", "46 46", "=46", "-46", "４６"])
def test_anything_else_scores_zero(response: str) -> None:
    assert exact(response, "46") == 0.0


def test_other_columns_of_the_row_do_not_matter() -> None:
    assert exact("46", "46", a=12, b=34) == 1.0
