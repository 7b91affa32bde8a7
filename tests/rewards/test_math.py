"""The mathematics reward: what is the same answer and what is not, one hand-written line a case."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.load import load_reward
from rewards.math import correct
from rewards.math.answers import final_answers
from rewards.math.compare import same
from rewards.math.verdict import read, what_is_wrong
from rewards.score import ANSWER_CHECK, KEEPS_NOTHING

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k"

SAME = [
    ("72", "72.0"),
    ("1,234", "1234"),
    (r"1{,}234{,}567", "1234567"),
    (r"1\,234", "1 234"),
    (r"\frac12", "0.5"),
    (r"\dfrac{3}{4}", "3/4"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"2\frac{1}{2}", "5/2"),
    ("2 1/2", "2.5"),
    (r"0.\overline{3}", "1/3"),
    (r"0.1\overline{6}", r"\frac{1}{6}"),
    ("1.5e3", "1500"),
    (r"3 \times 10^{5}", "300000"),
    ("3 million", "3,000,000"),
    (r"50\%", "50%"),
    (r"50\%", "0.5"),
    (r"50\%", "50"),
    (r"\$18.00", "18"),
    ("$5$", "5"),
    ("-$5", "-5"),
    ("5 cm", "5"),
    ("5 cm", r"5\text{ centimeters}"),
    ("5 sq cm", r"5\,\text{cm}^2"),
    (r"10\text{ km/h}", r"10\,\mathrm{km}/\mathrm{h}"),
    ("12 apples", "12"),
    ("12 apples", "12 red apples"),
    (r"90^\circ", "90 degrees"),
    (r"90^{\circ}", "90"),
    (r"\sin 30^\circ", "1/2"),
    ("x=5", "5"),
    ("5", "5."),
    ("f(x) = 2x + 1", "1+2x"),
    ("2x + y = 3", "y = 3 - 2x"),
    ("x < 1", "2x < 2"),
    ("x > 5", r"(5, \infty)"),
    (r"0 < x \le 5", "(0, 5]"),
    ("x < 0 or x > 1", r"(-\infty, 0) \cup (1, \infty)"),
    (r"x \in [0, 1)", "[0,1)"),
    (r"[0,1) \cup (2,3]", r"(2,3]\cup[0,1)"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    ("1, 2", "2 and 1"),
    ("x = 1 or x = 2", "1, 2"),
    ("x = 1, 2", r"\{1,2\}"),
    (r"\pm 2", "-2, 2"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2"),
    (r"\left(\frac{1}{2}, 3\right)", "(0.5,3)"),
    (r"\langle 1, 2 \rangle", "(1,2)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\\\end{bmatrix}"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\sqrt[3]{-8}", "-2"),
    (r"8^{1/3}", "2"),
    ("4√(2)", r"4\sqrt{2}"),
    (r"\frac{\pi}{2}", r"0.5\pi"),
    (r"e^{i\pi}", "-1"),
    ("(1+i)^2", "2i"),
    ("|-3|", "3"),
    (r"\log_2 8", "3"),
    (r"\ln e^2", "2"),
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"(x+1)^2", "x^2 + 2x + 1"),
    ("(x-2)(x+2)", "x^2-4"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("x**2", "x^2"),
    ("2^{2015}", r"2 \cdot 2^{2014}"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"\lfloor 2.5 \rfloor", "2"),
    (r"\infty", r"+\infty"),
    (r"\text{(A)}", "A"),
    ("(B)", r"\textbf{B}"),
    ("Yes.", r"\text{yes}"),
    ("True", "true"),
    (r"\text{the blue one}", "The blue one."),
    ("x_1", "x_{1}"),
    (r"\emptyset", r"\{\}"),
    ("2516_8", "2516_{8}"),
    ("(x,y)=(1,2)", "(1, 2)"),
    (r"\{x | x > 3\}", r"\{ x|x>3 \}"),
    (r"5\\", "5"),
    ("3:4:5", "3 : 4 : 5"),
    ("x=1, y=2", "y=2, x=1"),
    (r"\tan^{-1} 1", r"\frac{\pi}{4}"),
    ("-\\frac12+\\frac{\\sqrt3}{2}i", r"e^{2\pi i/3}"),
]

DIFFERENT = [
    ("72", "73"),
    ("72", "-72"),
    ("1,234", "1.234"),
    ("12,34", "1234"),
    ("7 2", "72"),
    ("7 2", "14"),
    ("0.33", "1/3"),
    ("0.9999999999999999999999999", "1"),
    ("1/2^99", "1/2^98"),
    ("1/2^{99}", "0"),
    ("2^{2015}", "2^{2015}+1"),
    (r"2^{400}\sqrt{2}", r"2^{400}\sqrt{2}+1"),
    (r"\sqrt{2}+10^{-60}", r"\sqrt{2}"),
    ("x+10^{-200}", "x"),
    (r"2\frac{1}{2}", "1"),
    (r"2\frac12", "21/2"),
    ("3 million", "3"),
    ("5 half", "5"),
    ("5 cm", "5 m"),
    ("5 cm", "5 cm^2"),
    ("5 apples", "5 oranges"),
    ("5 or 6", "5"),
    ("5 million", "5 billion"),
    ("50%", "5"),
    (r"90^\circ", r"\pi/2"),
    ("x=5", "y=5"),
    ("5=5", "5"),
    ("xy=5", "5"),
    ("x<1", "x>1"),
    ("x<1", r"x \le 1"),
    ("x<1", "y<1"),
    ("-x<1", "x<1"),
    ("x<1", "x=1"),
    ("(0,1]", "[0,1)"),
    ("(0,1)", "[0,1]"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", r"\{1,2\}"),
    ("(1,234)", "1234"),
    ("1,2", "1,2,3"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"\{72\}", "72"),
    ("1,1,2", "1,2,2"),
    (r"\pm 2", "2"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("4√(2)", "4"),
    (r"\sqrt{2}", "1.41421356"),
    (r"\pi", "3.14"),
    (r"\pi", "22/7"),
    (r"\sqrt{x^2}", "x"),
    ("(x+1)^2", "x^2+1"),
    ("x", "X"),
    ("x", "y"),
    ("A", "B"),
    ("yes", "no"),
    ("not 5", "5"),
    ("3xyz", "3"),
    ("about 5", "5"),
    (r"\infty", r"-\infty"),
    (r"\log 2", r"\ln 2"),
    ("5!", "5"),
    ("i", "1"),
    ("1/0", "2/0"),
    ("2516", "2516_8"),
    ("4210_5", "4210_6"),
    ("(x,y)=(1,2)", "(y,x)=(1,2)"),
    ("2 hours", "120 seconds"),
    ("3:4:5", "3/20"),
]

PUBLISHED = [  # answers that some judge has taken for the same, by the issue that tells it
    ("Math-Verify#47", "1, 2, 3", "1, 2"),
    ("Math-Verify#47", r"\{1, 2, 3, 4\}", r"\{1, 3\}"),
    ("Math-Verify#14", r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    ("Math-Verify#14", "n=1,2,3", "n=2,3,4"),
    ("Math-Verify#10", "1", "x=1, y=2"),
    ("Math-Verify#25", "(1, 2)", "1"),
    ("Math-Verify#71", "x = 1 or x = 2", "x = 1"),
    ("Math-Verify#41", "4√(2)", "4"),
    ("Math-Verify#76", r"\frac{1}{3}", "0.333"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_answer_is_correct_whichever_is_the_reference(one: str, other: str) -> None:
    assert correct(rf"so \boxed{{{one}}}.", other) == {"correct": 1.0}
    assert correct(f"#### {other}", one) == {"correct": 1.0}


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_another_answer_is_wrong_whichever_is_the_reference(one: str, other: str) -> None:
    assert correct(rf"so \boxed{{{one}}}.", other) == {"correct": 0.0}
    assert correct(f"#### {other}", one) == {"correct": 0.0}


@pytest.mark.parametrize(("issue", "one", "other"), PUBLISHED)
def test_published_false_positives_are_wrong_in_both_directions(issue: str, one: str, other: str) -> None:
    assert correct(rf"\boxed{{{one}}}", other) == correct(rf"\boxed{{{other}}}", one) == {"correct": 0.0}
    assert correct(rf"\boxed{{{one}}}", one) == correct(rf"\boxed{{{other}}}", other) == {"correct": 1.0}


@pytest.mark.parametrize(
    "response", ["<think></think>5", "5", "<think>\\boxed{5}</think>", "<think>\\boxed{5}", "", "#### "]
)
def test_a_response_that_marks_no_answer_has_none(response: str) -> None:
    assert correct(response, "5") == {"correct": 0.0}


def test_a_finished_thought_does_not_count_and_what_follows_does() -> None:
    assert correct(r"<think>\boxed{4}</think> \boxed{5}", "5") == {"correct": 1.0}
    assert correct(r"\boxed{4}, no</think> \boxed{5}", "5") == {"correct": 1.0}


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (r"\boxed{5}, that is \boxed{5.0}", 1.0),
        (r"\boxed{\boxed{5}}", 1.0),
        (r"\boxed{5} or \boxed{6}", 0.0),
        (r"\boxed{6} \boxed{5}", 0.0),
        (r"\boxed{1} \boxed{2} \boxed{3} \boxed{4} \boxed{5.0} \boxed{6} \boxed{7} \boxed{5}", 0.0),
        (r"\boxed{5", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{6} #### 5", 0.0),
        (r"\boxed{" + "5" * 301 + "}", 0.0),
        (r"\fbox{5}", 1.0),
    ],
)
def test_several_boxes_must_say_the_same(response: str, verdict: float) -> None:
    assert correct(response, "5") == {"correct": verdict}


def test_a_phrase_or_a_last_number_counts_only_where_it_is_asked_for() -> None:
    for response in ("The answer is 5.", "Final answer: **5**", "so 2 + 3 = 5 apples", "it is 5"):
        assert correct(response, "5") == {"correct": 0.0}
        assert correct(response, "5", anywhere=True) == {"correct": 1.0}
    assert correct("it is 5 or 6", "5", anywhere=True) == {"correct": 0.0}
    assert correct("the answer is 6, not 5", "5", anywhere=True) == {"correct": 0.0}


@pytest.mark.parametrize(
    ("response", "answer", "verdict"),
    [
        (r"\pi", "3.14", 1.0),
        ("3.14159", "3.14", 1.0),
        ("3.1", "3.14", 0.0),
        ("1/3", "0.33", 1.0),
        ("0.33", "1/3", 0.0),
        ("0.34", "0.33", 0.0),
        ("3", "3.14", 0.0),
        ("3", "3.4", 0.0),
        ("22/7", "3.1416", 0.0),
        ("x", "3.14", 0.0),
        ("3.14 + 0i", "3.14", 1.0),
        (r"3.14 + \sqrt{-1}", "3.14", 0.0),
    ],
)
def test_rounding_goes_by_the_reference_s_own_decimals(response: str, answer: str, verdict: float) -> None:
    assert correct(rf"\boxed{{{response}}}", answer, rounding=True) == {"correct": verdict}


@pytest.mark.parametrize("answer", ["", "  ", "$$", r"\boxed{}", r"\boxed{1} \boxed{2}", "5" * 301])
def test_a_reference_that_no_response_could_match_is_named_and_not_judged(answer: str) -> None:
    assert correct(r"\boxed{5}", answer) is None
    assert what_is_wrong(answer)


@pytest.mark.parametrize(
    "answer", ["5", "the blue one", r"\triangle ABC", r"\boxed{1} is \boxed{1}", "#### 5", "1e999999"]
)
def test_any_other_reference_is_fine(answer: str) -> None:
    assert getattr(correct, ANSWER_CHECK)(answer) is None
    assert correct(rf"\boxed{{{(final_answers(answer) or [answer])[-1]}}}", answer) == {"correct": 1.0}


ALPHABET = st.text(alphabet=r"0123456789xyie+-*/^_=<>(){}[]|,.!%$\ &'√π" + "\ud800\x00", max_size=40)
COMMANDS = st.sampled_from(
    [r"\frac", r"\sqrt", r"\text{", r"\left(", r"\right)", r"\pi", r"\cup", r"\pm", r"\log_", "^{", "}"]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(ALPHABET | COMMANDS, max_size=6).map("".join), st.lists(ALPHABET | COMMANDS, max_size=6).map("".join))
def test_no_text_raises_and_every_text_is_itself_and_the_verdict_has_no_direction(one: str, other: str) -> None:
    a, b = read(one), read(other)
    assert same(a, a) and same(a, b) == same(b, a)
    correct(rf"\boxed{{{one}}}", other)


@pytest.mark.parametrize(
    ("response", "answer"), [(r"\sqrt{8}", r"2\sqrt2"), ("2, 1", "1, 2"), ("3", "4"), ("yes", "yes")]
)
def test_a_second_opinion_is_shown_and_does_not_train(response: str, answer: str) -> None:
    pytest.importorskip("math_verify")
    alone = correct(rf"\boxed{{{response}}}", answer)
    both = correct(rf"\boxed{{{response}}}", answer, second_opinion="math_verify")
    assert both == {**alone, "math_verify": both["math_verify"], "total": alone["correct"]}
    # Words are nothing that it is shown.
    assert both["math_verify"] == (0.0 if response == "yes" else alone["correct"])


def test_an_unknown_second_opinion_is_refused() -> None:
    with pytest.raises(ValueError, match="there is math_verify"):
        correct("", "5", second_opinion="mathverify")


def test_it_is_found_by_its_name() -> None:
    assert load_reward("rewards.math:correct") is correct
    assert getattr(correct, KEEPS_NOTHING)


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not on this machine")
@pytest.mark.parametrize(("file", "count"), [("train.jsonl", 7473), ("test.jsonl", 1319)])
def test_every_solution_of_gsm8k_is_its_own_answer_and_not_the_next_one(file: str, count: int) -> None:
    solutions = [json.loads(line)["answer"] for line in (GSM8K / file).read_text(encoding="utf-8").splitlines()]
    assert len(solutions) == count
    numbers = [int(final_answers(solution)[0].replace(",", "")) for solution in solutions]
    for index, solution in enumerate(solutions):
        others = itertools.chain(range(index + 1, count), range(index))
        other = solutions[next(i for i in others if numbers[i] != numbers[index])]
        assert correct(solution, solution) == correct(rf"\boxed{{{numbers[index]}}}", solution) == {"correct": 1.0}
        assert correct(solution, other) == {"correct": 0.0}
