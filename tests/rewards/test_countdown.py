"""Countdown: exact arithmetic on exactly the numbers given, and texts that are no expression."""

from __future__ import annotations

import time

import pytest

from rewards.countdown import correct

NUMBERS = [3, 3, 8, 8]

RIGHT = [
    "8/(3-8/3)",
    " 8 / ( 3 - 8 / 3 ) ",
    "8 ÷ (3 − 8 ÷ 3)",
    r"8 \div (3 - 8 \div 3)",
    "(8/(3-8/3))",
    "((8))/((3)-(8/3))",
    "8/(3-8/3) = 24",
    "8/(3-8/3)=24",
    "\n8/(3-8/3)\n",
    "08/(3-8/3)",
]
WRONG = [
    "",
    "24",
    "3*8",
    "3*8+3-3",
    "8+8+3+3",
    "8+8+3+3+2",
    "8/(3-8/3) = 25",
    "8/(3-8/3) = 24 = 24",
    "8/(3-8/3",
    "8/(3-8/3))",
    "8/(8-8)+3*3",
    "8/(3-3)+8",
    "8(3)+8-8",
    "3**8+3+8",
    "-8/(3-8/3)",
    "8.0/(3-8/3)",
    "88-33",
    "8/(3-8/3) # 1",
    "__import__('os').getpid()",
    "8 8 3 3",
    "9" * 13,
    "٨/(٣-٨/٣)",
]


@pytest.mark.parametrize("text", RIGHT)
def test_an_expression_that_makes_the_target_is_correct(text: str) -> None:
    assert correct(f"Well. <answer>{text}</answer>", "24", numbers=NUMBERS) == {"correct": 1.0}
    assert correct(rf"\boxed{{{text}}}", "24", nums=NUMBERS) == {"correct": 1.0}
    assert correct(f"<answer>{text}</answer>", "25", numbers=NUMBERS) == {"correct": 0.0}


@pytest.mark.parametrize("text", WRONG)
def test_anything_else_is_wrong(text: str) -> None:
    assert correct(f"<answer>{text}</answer>", "24", numbers=NUMBERS) == {"correct": 0.0}


TABLE = [
    ("<answer>(25 - 5) * 4</answer>", "80", [4, 5, 25], 1.0),  # 20 * 4
    ("<answer>25 - 5 * 4</answer>", "5", [4, 5, 25], 1.0),  # 25 - 20
    ("<answer>25 - 5 * 4</answer>", "80", [4, 5, 25], 0.0),
    ("<answer>25 - 5 - 4</answer>", "16", [4, 5, 25], 1.0),  # from the left
    ("<answer>25 - 5 - 4</answer>", "24", [4, 5, 25], 0.0),
    ("<answer>100 / 5 / 4</answer>", "5", [4, 5, 100], 1.0),
    ("<answer>100 / 5 / 4</answer>", "80", [4, 5, 100], 0.0),
    ("<answer>7 / 2 * 2</answer>", "7", [2, 2, 7], 1.0),  # 3.5 * 2
    ("<answer>7 / 2 * 2</answer>", "6", [2, 2, 7], 0.0),
    ("<answer>1 / 3 * 3</answer>", "1", [1, 3, 3], 1.0),
    ("<answer>10 / 3</answer>", "3", [3, 10], 0.0),
    ("<answer>10 - 12</answer>", "-2", [10, 12], 1.0),
    ("<answer>10 - 12 = -2</answer>", "-2", [10, 12], 1.0),
    ("<answer>12 - 10</answer>", "-2", [10, 12], 0.0),
    ("<answer>-10 + 12</answer>", "2", [10, 12], 1.0),
    ("<answer>5 - -3</answer>", "8", [3, 5], 1.0),
    ("<answer>-(5 - 3) * 4</answer>", "-8", [3, 4, 5], 1.0),
    ("<answer>1+1</answer> no: <answer>2*3</answer>", "6", [2, 3], 1.0),
    ("<answer>2*3</answer> no: <answer>1+1</answer>", "6", [2, 3], 0.0),
    ("<answer>2*3</answer> <answer></answer>", "6", [2, 3], 0.0),
    ("<think><answer>2+3</answer></think><answer>2*3</answer>", "6", [2, 3], 1.0),
    (r"so \boxed{2+3}, no \boxed{2*3}", "6", [2, 3], 1.0),
    (r"so \boxed{2*3}, no \boxed{2+3}", "6", [2, 3], 0.0),
    ("<answer>2*3", "6", [2, 3], 0.0),
    ("2*3</answer>", "6", [2, 3], 0.0),
    ("<answer>2*3</answer", "6", [2, 3], 0.0),
    ("<answer>2 3 *</answer>", "6", [2, 3], 0.0),
    ("<answer>2*(3)</answer>", "6", [2, 3], 1.0),
    ("<answer>(2)(3)</answer>", "6", [2, 3], 0.0),
    ("<answer>6</answer>", "6", [2, 3], 0.0),
    ("<answer>6</answer>", "6", [6], 1.0),
    ("<answer>6 = 2*3</answer>", "6", [2, 3], 0.0),
    ("<answer>2*3 = 6 =</answer>", "6", [2, 3], 0.0),
    ("<answer>2*3</answer>", "6", [2, 3, 5], 0.0),
    ("<answer>23 - 17</answer>", "6", [2, 3, 17], 0.0),
    ("<answer>2*2 + 3</answer>", "7", [2, 2, 3], 1.0),
    ("<answer>2*3 + 3</answer>", "9", [2, 2, 3], 0.0),
    ("<answer>5 + 0</answer>", "5", [0, 5], 1.0),
    ("<answer>5 / 0</answer>", "5", [0, 5], 0.0),
    ("<answer>0 * (1 / 0)</answer>", "0", [0, 0, 1], 0.0),
    ("<answer>2*3</answer>", " 6\n", (3, 2), 1.0),
    ("<answer>2*3</answer>", "6.0", [2, 3], None),
    ("<answer>2*3</answer>", "", [2, 3], None),
    ("<answer>2*3</answer>", "6", [], None),
    ("<answer>2*3</answer>", "6", [2.0, 3], None),
    ("<answer>2*3</answer>", "6", ["2", "3"], None),
    ("<answer>2*3</answer>", "6", "23", None),
    ("<answer>True*3</answer>", "3", [True, 3], None),
    ("<answer>-2*3</answer>", "-6", [-2, 3], None),  # no number can be written so that it counts as the row's -2
]


@pytest.mark.parametrize(("response", "target", "numbers", "expected"), TABLE)
def test_what_an_expression_makes_by_hand(
    response: str, target: str, numbers: list[int], expected: float | None
) -> None:
    assert correct(response, target, numbers=numbers) == (None if expected is None else {"correct": expected})


def test_with_use_all_off_numbers_may_be_left_but_none_used_twice() -> None:
    assert correct("<answer>3*8</answer>", "24", numbers=NUMBERS, use_all=False) == {"correct": 1.0}
    assert correct("<answer>3*8+3-3</answer>", "24", numbers=NUMBERS, use_all=False) == {"correct": 0.0}


def test_a_row_without_numbers_or_target_cannot_be_judged() -> None:
    assert correct("<answer>24</answer>", "24") is None
    assert correct("<answer>24</answer>", "x", numbers=NUMBERS) is None


@pytest.mark.parametrize("text", ["(" * 299, "(" * 1_000_000, "8/" * 149, "8" * 1_000_000, "<answer>" * 100_000])
def test_a_text_made_to_break_the_parser_is_wrong_and_quickly_so(text: str) -> None:
    start = time.monotonic()
    assert correct(f"<answer>{text}</answer>", "24", numbers=NUMBERS) == {"correct": 0.0}
    assert time.monotonic() - start < 2
