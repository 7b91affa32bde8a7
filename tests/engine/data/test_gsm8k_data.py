"""GSM8K's rows: an answer out of each worked solution, and solutions to imitate."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.data.base import DataError, Split
from engine.data.gsm8k import Gsm8kData

GSM8K = Path(__file__).parents[4] / "shared/data/gsm8k"

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Rows (or raw lines) -> the path of a file that holds them."""

    def write_file(*rows: object, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return str(path)

    return write_file


def asked(data: Gsm8kData, split: Split = Split.TRAIN) -> list[tuple[str, str]]:
    return [(question.messages[-1].content, question.answer) for question in data.questions(split)]


def test_the_answer_is_what_stands_after_the_last_mark_without_commas(write: Write) -> None:
    solution = "She has #### of them: 500+734=<<500+734=1234>>1234.\n#### 1,234"
    (question,) = Gsm8kData(path=write({"question": "How many?", "answer": solution}), held_out=0).questions(
        Split.TRAIN
    )

    assert question.answer == "1234"
    assert question.row == {"solution": solution}
    assert question.messages[-1].content.startswith("How many?\n")
    assert "\\boxed{}" in question.messages[-1].content


def test_a_solution_without_an_answer_is_told_by_file_and_line(write: Write) -> None:
    path = write({"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "It is 2."})
    with pytest.raises(DataError, match=r"rows\.jsonl:2: column 'answer' is 'It is 2.': no answer after ####"):
        Gsm8kData(path=path, held_out=0).questions(Split.TRAIN)


def test_every_bad_row_is_told_and_one_cannot_hide_another(write: Write) -> None:
    path = write({"question": "a", "answer": "1"}, "{", {"question": "c", "answer": "#### 3"}, {"answer": "#### 4"})
    with pytest.raises(DataError) as caught:
        Gsm8kData(path=path, held_out=0).questions(Split.TRAIN)
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()[:3]] == [f"{path}:{n}:" for n in (1, 2, 4)]


def test_a_file_that_is_not_there_or_has_no_rows_or_is_all_held_out_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        Gsm8kData(path="nowhere.jsonl").questions(Split.TRAIN)
    with pytest.raises(DataError, match=r"rows\.jsonl: no rows"):
        Gsm8kData(path=write("", "")).questions(Split.TRAIN)
    with pytest.raises(DataError, match=r"1 rows, and data\.held_out is 200"):
        Gsm8kData(path=write({"question": "a", "answer": "#### 1"})).questions(Split.TRAIN)


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not beside the repository")
def test_every_answer_of_gsm8k_is_a_whole_number() -> None:
    data = Gsm8kData(path=str(GSM8K / "train.jsonl"), held_out_path=str(GSM8K / "test.jsonl"))
    train, held_out = data.questions(Split.TRAIN), data.questions(Split.HELD_OUT)

    assert (len(train), len(held_out)) == (7473, 1319)
    assert [question.answer for question in train[:3]] == ["72", "10", "5"]
    assert all(question.answer.lstrip("-").isdigit() for question in (*train, *held_out))
    assert not {question.messages[0] for question in train} & {question.messages[0] for question in held_out}


def test_shots_are_the_first_rows_solved_before_every_question_and_never_trained_on(write: Write) -> None:
    rows = [{"question": f"q{n}", "answer": f"{n} + 0 = <<{n}+0={n}>>{n}.\n#### {n}"} for n in range(5)]
    data = Gsm8kData(path=write(*rows), held_out=1, shots=2, instruction="Think.")
    train, held_out = data.questions(Split.TRAIN), data.questions(Split.HELD_OUT)

    assert [question.answer for question in train] == ["2", "3"]
    assert [(turn.role, turn.content) for turn in held_out[0].messages] == [
        ("user", "q0\nThink."),
        ("assistant", "0 + 0 = 0.\n#### 0"),
        ("user", "q1\nThink."),
        ("assistant", "1 + 0 = 1.\n#### 1"),
        ("user", "q4\nThink."),
    ]
    with pytest.raises(DataError, match="shots is 4"):
        Gsm8kData(path=write(*rows), held_out=1, shots=4).questions(Split.TRAIN)


def test_a_hub_id_is_asked_for_its_own_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, name: str, *, split: str) -> list[dict[str, str]]:
        return [{"question": f"{path}/{name}/{split}", "answer": "#### 7"}] * 2

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    data = Gsm8kData(instruction="", limit=1)

    assert asked(data) == [("openai/gsm8k/main/train", "7")]
    assert asked(data, Split.HELD_OUT) == [("openai/gsm8k/main/test", "7")] * 2


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, name: str, *, split: str) -> list[dict[str, str]]:
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"openai/gsm8k: cannot be loaded from the hub: offline\n.*local \.jsonl"):
        Gsm8kData().questions(Split.TRAIN)
