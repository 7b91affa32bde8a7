"""Prompts that hold their own answer are told of, and chance is not."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from engine.answer_in_prompt import answers_in_prompts, holds_answer
from engine.main import run
from workers.records import Message, Prompt


def prompt(asked: str, answer: str, number: int = 0) -> Prompt:
    messages = (Message(role="system", content="Be brief."), Message(role="user", content=asked))
    return Prompt(id=f"p{number}", messages=messages, token_ids=(1,), answer=answer, row={}, from_text=False)


@pytest.mark.parametrize(
    ("asked", "answer", "holds"),
    [
        ("Which one: Paris, or Rome?", "Paris", True),
        ("Which one: paris, or Rome?", " PARIS ", True),
        ("Say Parisian", "Paris", False),
        ("12+34=46?", "46", False),  # short answers stand there by chance
        ("1234567+1=", "3456", False),
        ("is it 1/2+x^2 (or not)?", "1/2+x^2", True),
        ("anything", "", False),
    ],
)
def test_an_answer_counts_where_it_stands_as_words_of_its_own(asked: str, answer: str, holds: bool) -> None:
    assert holds_answer(prompt(asked, answer)) is holds


def test_the_remark_says_how_many_and_names_some() -> None:
    rows = [prompt("Is it Paris?", "Paris", number) for number in range(5)] + [prompt("Is it?", "Paris")] * 15
    said = answers_in_prompts(rows)
    assert said is not None and said.startswith("5 of 20 prompts (25%)") and "(p0, p1, p2, ...)" in said


def test_a_few_among_many_and_none_at_all_are_not_told_of() -> None:
    assert answers_in_prompts([prompt("Is it Paris?", "Paris")] + [prompt("Is it?", "Paris")] * 150) is None
    assert answers_in_prompts([]) is None


def test_a_run_is_told_of_them_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Choose: alpha{n} or beta{n}?", "answer": f"beta{n}"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    typed = ["data=files", f"data.path={tmp_path}/rows.jsonl", "reward.function=rewards.number:exact"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
        assert run([*typed, "data.check=true"]) == 0
    assert "(100%) hold their own reference answer" in capsys.readouterr().out
