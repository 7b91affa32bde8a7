"""Rules about form: length, repetition, script, thinking; by hand, and DAPO's penalty as the algorithm has it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from engine.algorithms.shaping import Shaping
from rewards.language import as_asked, written_in
from rewards.length import near, soft_overlong, soft_overlong_tokens
from rewards.repetition import repetition
from rewards.text import exact, f1, similar
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
        ("Привет hi", "ru", 6 / 8),
        ("人々", "ja", 1.0),
        ("人々", "zh", 1.0),
        ("スーパー", "ja", 1.0),
        ("ｶﾀｶﾅ", "ja", 1.0),
        ("東京タワー", "zh", 2 / 5),
        ("日本語 is Japanese", "ja", 3 / 13),
        ("пʼять", "uk", 1.0),
        ("Straße", "de", 1.0),
        ("e\u0301a", "fr", 1.0),
        ("안녕 hi", "ko", 2 / 4),
        ("𝐀𝐁 ｃ", "en", 1.0),
        ("١٢٣", "ar", 0.0),
        ("مرحبا", "ar", 1.0),
        ("नमस्ते", "hi", 1.0),
        ("שלום", "he", 1.0),
        ("สวัสดี", "th", 1.0),
        ("γειά", "el", 1.0),
        ("ሰላም", "am", 1.0),
        ("x² + y²", "en", 1.0),
        ("\u2126mega", "en", 4 / 5),
        ("Olá", "pt-BR", 1.0),
        ("你好", "zh_CN", 1.0),
        ("你好", "Cjk", 1.0),
    ],
)
def test_the_share_of_letters_in_a_script(text: str, language: str, share: float) -> None:
    assert written_in(text, "", language=language) == {"language": share}


@pytest.mark.parametrize("language", ["", "xx", "klingon", "Russian"])
def test_no_response_is_written_in_what_is_no_script(language: str) -> None:
    with pytest.raises(ValueError, match="neither a script"):
        written_in("Да", "", language=language)


@pytest.mark.parametrize(
    ("asked", "text", "share"),
    [
        ("これは何ですか", "東京です", 1.0),  # six of its seven letters are Hiragana, and an answer may use Kanji
        ("これは何ですか", "It is Tokyo", 0.0),
        ("東京？", "東京です", 2 / 4),
        ("Реши 2x + 3 = 7", "Ответ: 2", 1.0),  # one of five letters asks for Latin, too
        ("Реши 2x + 3 = 7", "x = 2", 1.0),
        ("Реши уравнение 2x + 3 = 7", "x = 2", 0.0),
        ("Переведи: cat", "кот is cat", 1.0),
        ("2 + 2 =", "4", None),
        ("", "x", None),
    ],
)
def test_the_share_of_letters_in_the_scripts_of_the_question(asked: str, text: str, share: float | None) -> None:
    said = as_asked(text, "", messages=[{"role": "user", "content": asked}])
    assert said == (None if share is None else {"language": share})


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
        ("a</think><answer>b</answer>", "answer", True, True),
        ("<think>a</think><answer>b</answer>", "answer", True, False),
        ("</think>b", "", True, False),
        ("a</think>b</think>c", "", True, False),
        ("a", "", True, False),
        ("<think>a</think> \n ", "", False, False),
        ("<think>a</think>b<think>c</think>d", "", False, False),
        ("<think>a<think>b</think>c", "", False, False),
        ("x<think>a</think>b", "", False, False),
        ("\n<think>a</think>b", "", False, True),
        ("<think>a</think><final>4</final>", "final", False, True),
        ("<think>a</think><answer>4</answer>", "final", False, False),
        ("<think>a</think>4", "answer", False, False),
        ("< think>a</think>b", "", False, False),
        ("<think>a</THINK>b", "", False, False),
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
        ("An apple a day", "apple day", 1.0, 1.0),
        ("apple", "an apple pie", 0.0, 2 / 3),  # 1 of 1 and of 2
        ("theatre", "atre", 0.0, 0.0),
        ("U.S.A.", "usa", 1.0, 1.0),
        ("e-mail", "email", 1.0, 1.0),
        ("par is", "paris", 0.0, 0.0),
        ("ÉCOLE", "école", 1.0, 1.0),
        ("New\tYork\nCity", "new york city", 1.0, 1.0),
        ("“Paris”", "Paris", 0.0, 0.0),  # the measure's punctuation is ASCII's
        ("The", "the", 1.0, 1.0),
        ("?!", "!?", 0.0, 0.0),
        ("?!", "?!", 1.0, 1.0),
        ("the cat sat on the mat", "a cat on a mat", 0.0, 6 / 7),  # 3 of 4 and of 3
        ("cat cat cat", "cat", 0.0, 1 / 2),  # 1 of 3 and of 1
        ("cat cat", "cat cat cat", 0.0, 4 / 5),
        ("on the mat the cat sat", "cat sat on mat", 0.0, 1.0),
        ("yes", "yes, yes", 0.0, 2 / 3),
    ],
)
def test_words_shared_with_the_answer(response: str, answer: str, is_exact: float, shared: float) -> None:
    assert exact(response, answer) == {"exact": is_exact}
    assert f1(response, answer) == {"f1": pytest.approx(shared)}


@pytest.mark.parametrize(
    ("response", "answer", "letters"),
    [
        ("kitten", "sitting", 4),  # ittn
        ("AGGTAB", "GXTXAYB", 4),  # GTAB
        ("ABCBDAB", "BDCABA", 4),  # BCBA
        ("abc", "cba", 1),
        ("abc", "abc", 3),
        ("abc", "xyz", 0),
        ("abc", "ABC", 0),
        ("aaa", "aa", 2),
        ("46", "64", 1),
        ("a b", "ab", 2),
        ("", "abc", 0),
        ("ÄÖ", "Ö", 1),
        ("😀a", "😀", 1),
    ],
)
def test_letters_shared_in_order(response: str, answer: str, letters: int) -> None:
    expected = {"similar": pytest.approx(2 * letters / (len(response) + len(answer)))}
    assert similar(response, answer) == similar(f" {response}\n", f"\t{answer}") == expected


def test_an_empty_answer_cannot_be_judged() -> None:
    assert exact("", " ") is None and f1("x", "") is None


def test_a_megabyte_takes_no_second() -> None:
    text = "<think>" * 50_000 + "да ok " * 100_000
    begun = time.process_time()
    repetition(text, "", n=3), written_in(text, "", language="ru"), thinks(text, ""), f1(text, "ok")
    assert time.process_time() - begun < 5.0
