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
