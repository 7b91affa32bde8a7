"""The GSM8K reward: both directions of mistakes, and texts made to break a checker."""

from __future__ import annotations

import itertools
import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.gsm8k import correct, number_of
from rewards.math.answers import final_answers
from rewards.score import ANSWER_CHECK

TRAIN = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k" / "train.jsonl"

RIGHT = [
    (r"so \boxed{72}.", "72"),
    (r"\boxed{ 72 }", "Natalia sold 48 + 24 = 72.\n#### 72"),
    ("thinking...\n#### 72", "72"),
    ("#### 72\nI hope this helps you in 2024!", "72"),
    ("#### **72**", "72"),
    ("####\n72.", "72"),
    ("#### 71\nNo, wait.\n#### 72", "72"),
    (r"\boxed{72}, that is, \boxed{72.0}", "72"),
    (r"\boxed{\boxed{72}}", "72"),
    (r"f(x) = {x, so \boxed{72}", "72"),
    (r"\boxed{1,234}", "1234"),
    (r"\boxed{1{,}234{,}567}", "1234567"),
    (r"\boxed{1\,234}", "1,234"),
    (r"\boxed{1,\!234}", "#### 1,234"),
    ("#### $18", "18"),
    (r"\boxed{\$18.00}", "18"),
    ("#### -$5", "-5"),
    ("#### $-5", "-5"),
    ("#### −5", "-5"),
    (r"\boxed{$18$}", "18"),
    (r"\boxed{50\%}", "50"),
    ("#### 50 %", "50%"),
    ("#### 18 dollars.", "18"),
    (r"\boxed{12\text{ square feet}}", "12"),
    (r"\boxed{12\,\mathrm{km/h}}", "12"),
    (r"\boxed{\text{12}}", "12"),
    (r"\boxed{\dfrac{1}{2}}", "0.5"),
    (r"\boxed{-\frac{6}{4}}", "-1.5"),
    ("#### 3/4", ".75"),
    ("#### 1.5e3", "1500"),
    ("#### 0.1", "1/10"),
]

WRONG = [
    ("", "72"),
    ("72", "72"),
    ("The answer is 72.", "72"),
    ("#### ", "72"),
    ("#### 73", "72"),
    ("#### 72\n#### 73", "72"),
    (r"\boxed{72} or \boxed{73}", "72"),
    (r"\boxed{73} \boxed{72}", "72"),
    (r"\boxed{72} \boxed{x}", "72"),
    (r"\boxed{73} #### 72", "72"),
    (r"\boxed{72, 73}", "72"),
    (r"\boxed{72 or 73}", "72"),
    (r"\boxed{72 or seventy}", "72"),
    (r"\boxed{\{72\}}", "72"),
    (r"\boxed{x = 72}", "72"),
    (r"\boxed{72", "72"),
    (r"\boxed 72", "72"),
    (r"\boxed{}", "72"),
    (r"\boxed{70 + 2}", "72"),
    ("#### dollars 72", "72"),
    ("#### 72 73", "72"),
    ("#### 72 million", "72"),
    ("#### 72 thousand dollars", "72"),
    ("#### 72 and a half", "72"),
    ("#### 72k", "72"),
    ("#### 7 2", "72"),
    ("#### 72..", "72"),
    ("#### --72", "72"),
    ("#### -$-72", "-72"),
    ("#### 12,34", "1234"),
    ("#### 1234,567", "1234567"),
    ("#### 1,2345", "12345"),
    ("#### 1,234,56", "123456"),
    (r"\boxed{12\,34}", "1234"),
    (r"\boxed{2\frac{1}{2}}", "10.5"),
    ("#### 0.33", "1/3"),
    ("#### 0.9999999999999999999999999", "1"),
    ("#### 1/0", "1"),
    ("#### -18", "18"),
    ("#### 50%", "0.5"),
    ("#### ٧٢", "72"),
    ("#### 1e999999999", "1"),
    ("#### 9**9**9**9", "1"),
    ("#### inf", "1"),
    ("#### nan", "1"),
    ("#### __import__('os').getpid()", "1"),
]


@pytest.mark.parametrize(("response", "answer"), RIGHT)
def test_the_right_number_is_correct_however_it_is_dressed(response: str, answer: str) -> None:
    assert correct(response, answer) == {"correct": 1.0}


@pytest.mark.parametrize(("response", "answer"), WRONG)
def test_anything_else_is_wrong(response: str, answer: str) -> None:
    assert correct(response, answer) == {"correct": 0.0}


@pytest.mark.parametrize("answer", ["", "blue", "12,34", r"\boxed{1} \boxed{2}", "#### ?"])
def test_an_answer_that_is_no_number_cannot_be_judged(answer: str) -> None:
    assert correct("#### 72", answer) is None
    assert getattr(correct, ANSWER_CHECK)(answer)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 100_000,
        r"\boxed{" * 10_000 + "72" + "}" * 10_000,
        "{" * 500_000 + "}" * 500_000,
        "####" * 100_000 + " 73",
        r"\boxed{" + "9" * 1_000_000 + "}",
        r"\boxed{" + r"\text{" * 49 + "}" * 49 + "}",
        "#### 5" + " " * 294 + "!",
        "#### " + r"\frac{" * 50,
        "#### 1" + "e1" * 140,
        "\x00\ud800" * 1000,
    ],
)
def test_a_text_made_to_break_the_checker_is_wrong_and_quickly_so(text: str) -> None:
    start = time.monotonic()
    assert correct(text, "9") == {"correct": 0.0}
    assert time.monotonic() - start < 2


@settings(deadline=None)
@given(st.text())
def test_no_text_raises(text: str) -> None:
    assert correct(f"#### {text}", "1") is not None
    assert correct(rf"\boxed{{{text}}}", "1") is not None


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_every_spelling_of_a_number_is_that_number_and_its_neighbour_is_not(number: int, places: int) -> None:
    value = Fraction(number, 10**places)
    text = f"{number / 10**places:,.{places}f}" if abs(number) < 2**50 else str(value)
    for spelling in (text, f"${text}", f"{text}.", f"{text} dollars", rf"\text{{{text}}}", text.replace(",", "{,}")):
        assert number_of(spelling) == value
        assert correct(rf"\boxed{{{spelling}}}", f"{value}") == {"correct": 1.0}
        assert correct(rf"\boxed{{{spelling}}}", f"{value + Fraction(1, 10**places)}") == {"correct": 0.0}


@pytest.mark.skipif(not TRAIN.exists(), reason="the GSM8K training file is not on this machine")
def test_every_gold_solution_is_correct_for_its_own_answer_and_wrong_for_another() -> None:
    solutions = [json.loads(line)["answer"] for line in TRAIN.read_text(encoding="utf-8").splitlines()]
    assert len(solutions) == 7473
    finals = [final_answers(solution)[0] for solution in solutions]
    numbers = [number_of(final) for final in finals]
    for index, solution in enumerate(solutions):
        after = itertools.chain(range(index + 1, len(numbers)), range(index))
        other = next(i for i in after if numbers[i] != numbers[index])
        assert correct(solution, solution) == correct(rf"\boxed{{{finals[index]}}}", solution) == {"correct": 1.0}
        assert correct(solution, solutions[other]) == correct(solution, finals[other]) == {"correct": 0.0}
