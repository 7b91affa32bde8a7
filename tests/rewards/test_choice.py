"""Multiple choice: the option that a response settles on, and responses that settle on none or on several."""

from __future__ import annotations

import time

import pytest

from rewards.choice import correct

CITIES = ["Rome", "Paris", "A dog", "None of the above"]

RIGHT = [
    r"\boxed{B}",
    r"\boxed{(B)}",
    r"\boxed{\text{B}}",
    r"\boxed{B}. To repeat: \boxed{b}",
    "Answer: B",
    "answer: (b)",
    "**Answer: B**",
    "**Answer:** B.",
    "The answer is B.",
    "The answer is (B) because A is wrong",
    "the answer is: B",
    "The answer is option B.",
    "A is wrong. C is wrong.\nAnswer: B",
    "B",
    " (B) ",
    "B.",
    "B) Paris",
    "I thought of A.\n\nB",
    "It must be (B), surely",
    r"(A) is wrong, so \boxed{B}",
]
WRONG = [
    "",
    "A",
    "Answer: A",
    r"\boxed{A}",
    r"\boxed{A} \boxed{B}",
    r"\boxed{B} \boxed{7}",
    r"\boxed{B, C}",
    "Answer: B or C",
    "Answer: A and B",
    "Answer: A\nAnswer: B",
    "Answer: B, C, D",
    "Answer: B/C",
    "Answer: (A)(B)",
    "The answer is not B.",
    "(A) or (B)",
    "Both A and B",
    "B or C",
    "Because",
    "\\boxed{}",
    "Answer: K",
    "Answer: АВ",
    "Answer: " + "B " * 50,
]


@pytest.mark.parametrize("response", RIGHT)
def test_the_right_option_is_correct_however_it_is_named(response: str) -> None:
    assert correct(response, "B") == correct(response, "(B)") == {"correct": 1.0}
    assert correct(response, "C") == {"correct": 0.0}


@pytest.mark.parametrize("response", WRONG)
def test_another_option_or_several_or_none_is_wrong(response: str) -> None:
    assert correct(response, "B") == {"correct": 0.0}


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("Answer: Paris", "B", 1.0),
        ("The answer is paris.", "Paris", 1.0),
        (r"\boxed{\text{Paris}}", "B", 1.0),
        ("Answer: A dog", "C", 1.0),
        ("Answer: A dog", "A", 0.0),
        ("Rome", "B", 0.0),
        ("Answer: E", "B", 0.0),
    ],
)
def test_an_option_may_be_named_by_its_text(response: str, answer: str, score: float) -> None:
    assert correct(response, answer, choices=CITIES) == {"correct": score}


@pytest.mark.parametrize("answer", ["", "K", "Berlin", "A or B", "E"])
def test_an_answer_that_is_no_option_cannot_be_judged(answer: str) -> None:
    assert correct("Answer: A", answer, choices=CITIES) is None


@pytest.mark.parametrize(
    "text",
    ["answer:" * 100_000, "answer is" + " " * 1_000_000, r"\boxed{" * 100_000, "(" * 1_000_000, "\ud800\x00" * 99],
)
def test_a_text_made_to_break_the_checker_is_wrong_and_quickly_so(text: str) -> None:
    start = time.monotonic()
    assert correct(text, "B") == {"correct": 0.0}
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "hedge",
    [
        "Answer: (B)/(C)",
        "Answer: B. C. D. A.",
        "Answer: B; alternatively A",
        "The answer is B: no, A",
        "Answer: B\nAnswer: none of these",
        "The answer is (B) Rome",
        "Not (B).",
        "(B) is wrong",
    ],
)
def test_a_choice_that_is_taken_back_or_shared_is_none(hedge: str) -> None:
    assert correct(hedge, "B", choices=["Rome", "Paris", "Bern"]) == {"correct": 0.0}


@pytest.mark.parametrize("said", ["The correct answer is **B**.", "<answer>B</answer>", "<answer>(B) Paris</answer>"])
def test_a_choice_in_bold_or_in_a_tag_counts(said: str) -> None:
    assert correct(said, "B", choices=["Rome", "Paris", "Bern"]) == {"correct": 1.0}
