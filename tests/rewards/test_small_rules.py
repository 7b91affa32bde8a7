"""Rules about form: length, repetition, script, thinking; by hand, and DAPO's penalty as the algorithm has it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from engine.algorithms.shaping import Shaping
from rewards.language import as_asked, written_in
from rewards.length import near, soft_overlong, soft_overlong_tokens
from rewards.repetition import repetition
from rewards.text import exact, f1
from rewards.thinking import thinks


def test_the_overlong_penalty_is_the_algorithm_s() -> None:
    lengths = np.arange(0, 130)
    shaped = Shaping(overlong_share=0.25, overlong_penalty=0.7).rewards(
        np.zeros(len(lengths)), length_B=lengths, truncated_B=np.zeros(len(lengths), dtype=bool), max_length=100
    )
    ours = [soft_overlong("x" * n, "", max_length=100, share=0.25, penalty=0.7)["length"] for n in lengths]
    tokens = soft_overlong_tokens([""] * 130, [""] * 130, [[1] * n for n in lengths], 100, 0.25, 0.7)
    np.testing.assert_allclose(ours, shaped, atol=1e-12)
    np.testing.assert_allclose(tokens, shaped, atol=1e-12)
    assert shaped.min() == -0.7 and shaped[75] == 0.0


@pytest.mark.parametrize(("length", "expected"), [(0, 0.0), (5, 0.0), (7, 0.4), (10, 1.0), (12, 0.6), (15, 0.0)])
def test_near_a_length(length: int, expected: float) -> None:
    assert near("x" * length, "", target=10, width=5)["length"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "n", "unit", "share"),
    [
        ("", 2, "words", 0.0),
        ("one", 2, "words", 0.0),
        ("a b c d", 2, "words", 0.0),
        ("a b a b", 2, "words", 1 / 3),
        ("A b a B", 2, "words", 1 / 3),
        ("x " * 101, 1, "words", 100 / 101),
        ("x x x", 3, "words", 0.0),
        ("哈哈哈哈", 1, "characters", 3 / 4),
        ("哈哈哈哈", 1, "words", 0.0),
    ],
)
def test_repeated_n_grams(text: str, n: int, unit: str, share: float) -> None:
    assert repetition(text, "", n=n, penalty=2.0, unit=unit)["repetition"] == pytest.approx(-2 * share)


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("Hello", "en", 1.0),
        ("Привет", "ru", 1.0),
        ("Привет", "en", 0.0),
        ("да ok", "ru", 0.5),
        ("2 + 2 = 4", "en", 0.0),
        ("ひらカナ漢", "ja", 1.0),
        ("漢字", "zh", 1.0),
        ("한국", "ko", 1.0),
        ("αβ", "greek", 1.0),
        ("", "en", 0.0),
    ],
)
def test_the_share_of_letters_in_a_script(text: str, language: str, share: float) -> None:
    assert written_in(text, "", language=language) == {"language": share}


def test_an_answer_in_the_script_of_the_last_turn() -> None:
    asked = [{"role": "system", "content": "Reply briefly."}, {"role": "user", "content": "Сколько?"}]
    assert as_asked("Два", "", messages=asked) == {"language": 1.0}
    assert as_asked("Two", "", messages=asked) == {"language": 0.0}


@pytest.mark.parametrize(
    ("text", "tag", "opened", "right"),
    [
        ("<think>a</think><answer>b</answer>", "answer", False, True),
        ("<think>a</think>\n<answer>\nb</answer>\n", "answer", False, True),
        ("<think></think>a", "", False, False),
        ("<think>a</think>", "", False, False),
        ("<think>a</think>b", "", False, True),
        ("a</think>b", "", True, True),
        ("<think>a</think>b", "", True, False),
        ("<think>a</think><answer></answer>", "answer", False, False),
        ("<think> \n</think><answer>b</answer>", "answer", False, False),
        ("<think>\u200b</think><answer>\u200b</answer>", "answer", False, False),
        ("<answer>b</answer><think>a</think>", "answer", False, False),
        ("<think>a</think><think>a</think><answer>b</answer>", "answer", False, False),
        ("x<think>a</think><answer>b</answer>", "answer", False, False),
        ("<think>a<answer>b</answer></think>", "answer", False, False),
    ],
)
def test_thought_comes_before_the_answer_and_neither_is_empty(text: str, tag: str, opened: bool, right: bool) -> None:
    assert thinks(text, "", answer_tag=tag, opened=opened) == {"format": float(right)}


@pytest.mark.parametrize(
    ("response", "answer", "is_exact", "shared"),
    [
        ("The Eiffel Tower", "eiffel tower!", 1.0, 1.0),
        ("tower Eiffel", "Eiffel tower", 0.0, 1.0),
        ("Paris", "Eiffel tower", 0.0, 0.0),
        ("a b c d", "b c", 0.0, 0.8),
        ("", "A", 0.0, 0.0),
        ("...", "a", 0.0, 0.0),
        ("a", "A", 1.0, 1.0),
    ],
)
def test_words_shared_with_the_answer(response: str, answer: str, is_exact: float, shared: float) -> None:
    assert exact(response, answer) == {"exact": is_exact}
    assert f1(response, answer) == {"f1": pytest.approx(shared)}


def test_an_empty_answer_cannot_be_judged() -> None:
    assert exact("", " ") is None and f1("x", "") is None


def test_a_megabyte_takes_no_second() -> None:
    text = "<think>" * 50_000 + "да ok " * 100_000
    begun = time.process_time()
    repetition(text, "", n=3), written_in(text, "", language="ru"), thinks(text, ""), f1(text, "ok")
    assert time.process_time() - begun < 5.0
