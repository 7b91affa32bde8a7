"""Rows of files: read as they are, and refused by file and line when they cannot be."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.data.base import DataError, Split
from engine.data.chat import ChatData
from engine.data.gsm8k import Gsm8kData
from engine.data.jsonl import JsonlData

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


def asked(data: JsonlData | Gsm8kData, split: Split = Split.TRAIN) -> list[tuple[str, str]]:
    return [(question.messages[-1].content, question.answer) for question in data.questions(split)]


# ----------------------------------------------------------------------------- questions


def test_a_row_becomes_a_question_and_its_other_columns_reach_the_reward(write: Write) -> None:
    path = write({"prompt": "1+1=", "answer": "2", "level": 3}, "", {"prompt": "2+2=", "answer": 4, "level": 1})
    first, second = JsonlData(path=path, held_out=0, system_prompt="Add.").questions(Split.TRAIN)

    assert [(m.role, m.content) for m in first.messages] == [("system", "Add."), ("user", "1+1=")]
    assert (first.id, first.answer, first.row) == ("rows-1", "2", {"level": 3})
    assert (second.id, second.answer, second.row) == ("rows-3", "4", {"level": 1})


def test_columns_may_have_other_names(write: Write) -> None:
    path = write({"q": "1+1=", "a": "2"})
    assert asked(JsonlData(path=path, prompt_column="q", answer_column="a", held_out=0)) == [("1+1=", "2")]


def test_a_prompt_may_be_a_list_of_messages(write: Write) -> None:
    turns = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}]
    (question,) = JsonlData(path=write({"prompt": turns, "answer": "2"}), held_out=0).questions(Split.TRAIN)
    assert [(m.role, m.content) for m in question.messages] == [("system", "Add."), ("user", "1+1=")]


def test_the_last_rows_are_held_out_and_never_trained_on(write: Write) -> None:
    path = write(*({"prompt": f"{n}", "answer": f"{n}"} for n in range(10)))
    data = JsonlData(path=path, held_out=3)

    assert [answer for _, answer in asked(data)] == list("0123456")
    assert [answer for _, answer in asked(data, Split.HELD_OUT)] == list("789")
    limited = JsonlData(path=path, held_out=3, limit=5)
    assert [answer for _, answer in asked(limited)] == list("01")
    assert [answer for _, answer in asked(limited, Split.HELD_OUT)] == list("234")


def test_a_file_of_its_own_may_be_held_out(write: Write) -> None:
    train = write({"prompt": "a", "answer": "1"}, name="train.jsonl")
    held_out = write({"prompt": "b", "answer": "2"}, name="test.jsonl")
    data = JsonlData(path=train, held_out_path=held_out)

    assert asked(data) == [("a", "1")]
    assert asked(data, Split.HELD_OUT) == [("b", "2")]


def test_a_unicode_line_separator_inside_a_text_ends_no_line(write: Write) -> None:
    path = write('{"prompt": "a\u2028b", "answer": "1"}')
    assert asked(JsonlData(path=path, held_out=0)) == [("a\u2028b", "1")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": "1+1="', "not JSON"),
        ("[1, 2]", "not a JSON object but [1, 2]"),
        ({"question": "1+1=", "answer": "2"}, "no column 'prompt'; it has 'question', 'answer'."),
        ({"prompt": "1+1="}, "no column 'answer'; it has 'prompt'."),
        ({"prompt": " ", "answer": "2"}, "column 'prompt' is ' '"),
        ({"prompt": 3, "answer": "2"}, "column 'prompt' is 3"),
        ({"prompt": "1+1=", "answer": None}, "column 'answer' is None"),
        ({"prompt": "1+1=", "answer": True}, "column 'answer' is True"),
        ({"prompt": "1+1=", "answer": "2", "response": "2"}, "column 'response' has the name of an argument"),
        ({"prompt": [{"role": "user"}], "answer": "2"}, "message 1: not a message"),
        ({"prompt": [{"role": "human", "content": "a"}], "answer": "2"}, "unknown role 'human'"),
        ({"prompt": [{"role": "user", "content": None}], "answer": "2"}, "its content is None"),
    ],
)
def test_a_bad_row_is_told_by_file_and_line(write: Write, row: object, words: str) -> None:
    path = write({"prompt": "0+1=", "answer": "1"}, "", row)
    with pytest.raises(DataError) as caught:
        JsonlData(path=path, held_out=0).questions(Split.TRAIN)

    assert str(caught.value).startswith(f"{path}, line 3")
    assert words in str(caught.value)


def test_a_file_without_rows_and_one_that_is_not_there_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl: no rows"):
        JsonlData(path=write("", "")).questions(Split.TRAIN)
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        JsonlData(path="nowhere.jsonl").questions(Split.TRAIN)


def test_holding_out_everything_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"1 rows, and data\.held_out is 200"):
        JsonlData(path=write({"prompt": "a", "answer": "b"})).questions(Split.TRAIN)
    with pytest.raises(ValueError, match="limit is -1"):
        JsonlData(path="rows.jsonl", limit=-1)


# ----------------------------------------------------------------------------- GSM8K


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
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: column 'answer' has no answer after ####"):
        Gsm8kData(path=path, held_out=0).questions(Split.TRAIN)


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


# ----------------------------------------------------------------------------- conversations


OPENAI = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hello?"},
        {"from": "gpt", "value": "Hello."},
    ]
}


def test_both_forms_of_conversation_are_read(write: Write) -> None:
    openai, sharegpt = ChatData(path=write(OPENAI, SHAREGPT)).conversations(Split.TRAIN)

    assert [(m.role, m.content) for m in openai.messages] == [("user", "Hello?"), ("assistant", "Hello.")]
    assert [m.role for m in sharegpt.messages] == ["system", "user", "assistant"]
    assert (openai.id, sharegpt.id) == ("rows-1", "rows-2")


def test_a_json_file_holds_a_list_of_rows(write: Write) -> None:
    data = ChatData(path=write([OPENAI, SHAREGPT, OPENAI], name="chat.json"), held_out=1)

    assert [conversation.id for conversation in data.conversations(Split.TRAIN)] == ["chat-1", "chat-2"]
    assert [conversation.id for conversation in data.conversations(Split.HELD_OUT)] == ["chat-3"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "Hello."}, "no column 'messages'; it has 'text'."),
        ({"messages": OPENAI["messages"][:1]}, "no assistant turn"),
        ({"messages": []}, "not a list of messages but []"),
        ({"messages": "Hello."}, "not a list of messages but 'Hello.'"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "unknown role 'function_call'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "Only text is supported"),
    ],
)
def test_a_bad_conversation_is_told_by_file_and_line(write: Write, row: object, words: str) -> None:
    path = write(OPENAI, row)
    with pytest.raises(DataError) as caught:
        ChatData(path=path).conversations(Split.TRAIN)

    assert str(caught.value).startswith(f"{path}, line 2")
    assert words in str(caught.value)
