"""Every form that people's rows have gives the same records, and a form is seen from the columns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rows_of_a_test import LLAMA_FACTORY, write_rows

from engine.data.base import Conversation, DataError, Judged, Preference, RowKind, Split
from engine.data.files import FilesData
from engine.data.forms import Columns, Format
from workers.records import Message, ToolCall

USER, ANSWER = Message(role="user", content="Add.\n1+1="), Message(role="assistant", content="2")
BRIEF = Message(role="system", content="Be brief.")
BEFORE = (Message(role="user", content="Hello?"), Message(role="assistant", content="Hello."))
WEATHER = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object", "properties": {}}}


def files(tmp_path: Path, *rows: object, name: str = "rows.jsonl", **settings: Any) -> FilesData:
    path = write_rows(tmp_path / name, rows)
    return FilesData(path=(path,), **({"held_out": 0} | settings))


def told(data: FilesData, kind: RowKind) -> str:
    (line,) = data.described(kind)
    return line


# ----------------------------------------------------------------------------- conversations

TURNS = [BRIEF, *BEFORE, USER, ANSWER]
FORMS_OF_ONE_CONVERSATION = {
    Format.ALPACA: {
        "instruction": "Add.",
        "input": "1+1=",
        "output": "2",
        "system": "Be brief.",
        "history": [["Hello?", "Hello."]],
    },
    Format.SHAREGPT: {
        "system": "Be brief.",
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[turn.role], "value": turn.content} for turn in TURNS[1:]
        ],
    },
    Format.OPENAI: {"messages": [{"role": turn.role, "content": turn.content} for turn in TURNS]},
    Format.TRL: {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in TURNS[:-1]],
        "completion": [{"role": "assistant", "content": "2"}],
    },
}


@pytest.mark.parametrize(("format", "row"), FORMS_OF_ONE_CONVERSATION.items())
def test_a_conversation_is_the_same_record_in_every_form(tmp_path: Path, format: Format, row: dict[str, Any]) -> None:
    data = files(tmp_path, row)
    assert f"1 conversations as {format.value} (" in told(data, RowKind.CONVERSATIONS)
    assert data.conversations(Split.TRAIN) == (Conversation(id="rows-1", messages=tuple(TURNS), tools=(), images=()),)


OPENAI_CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
FORMS_OF_ONE_CALL = {
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Paris?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
            {"from": "observation", "value": '{"sky": "blue"}'},
            {"from": "gpt", "value": "It is fine."},
        ],
        "tools": json.dumps([WEATHER]),
    },
    "openai": {
        "messages": [
            {"role": "user", "content": "Paris?"},
            {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
            {"role": "tool", "content": '{"sky": "blue"}', "tool_call_id": "1"},
            {"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "fine."}]},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
    },
}


def test_a_call_of_a_tool_is_the_same_record_in_both_forms(tmp_path: Path) -> None:
    expected = Conversation(
        id="rows-1",
        messages=(
            Message(role="user", content="Paris?"),
            Message(role="assistant", content="", tool_calls=(ToolCall(name="weather", arguments={"city": "Paris"}),)),
            Message(role="tool", content='{"sky": "blue"}'),
            Message(role="assistant", content="It is fine."),
        ),
        tools=({"type": "function", "function": WEATHER},),
        images=(),
    )
    for row in FORMS_OF_ONE_CALL.values():
        assert files(tmp_path, row).conversations(Split.TRAIN) == (expected,)


def test_an_empty_system_turn_is_none_and_the_settings_own_comes_where_a_row_has_none(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": " "},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    own = [{"role": "system", "content": "Be long."}, *turns[1:]]
    rows = [{"messages": turns}, {"messages": turns[1:]}, {"messages": own}]
    first, second, third = files(tmp_path, *rows, system_prompt="Be brief.").conversations(Split.TRAIN)
    assert first.messages == second.messages
    assert first.messages[0] == BRIEF
    assert third.messages[0].content == "Be long."


# ----------------------------------------------------------------------------- preferences

WORSE = Message(role="assistant", content="3")
PREFERRED = {
    "alpaca": (Format.ALPACA, {"instruction": "Add.", "input": "1+1=", "chosen": "2", "rejected": "3"}),
    "sharegpt": (
        Format.SHAREGPT,
        {
            "conversations": [{"from": "human", "value": "Add.\n1+1="}],
            "chosen": {"from": "gpt", "value": "2"},
            "rejected": {"from": "gpt", "value": "3"},
        },
    ),
    "openai": (
        Format.OPENAI,
        {
            "messages": [{"role": "user", "content": "Add.\n1+1="}],
            "chosen": {"role": "assistant", "content": "2"},
            "rejected": {"role": "assistant", "content": "3"},
        },
    ),
    "openai's api": (
        Format.OPENAI,
        {
            "input": {"messages": [{"role": "user", "content": "Add.\n1+1="}]},
            "preferred_output": [{"role": "assistant", "content": "2"}],
            "non_preferred_output": [{"role": "assistant", "content": "3"}],
        },
    ),
    "trl": (Format.TRL, {"prompt": "Add.\n1+1=", "chosen": "2", "rejected": "3"}),
    "trl's messages": (
        Format.TRL,
        {
            "prompt": [{"role": "user", "content": "Add.\n1+1="}],
            "chosen": [{"role": "assistant", "content": "2"}],
            "rejected": [{"role": "assistant", "content": "3"}],
        },
    ),
    "handbook": (
        Format.HANDBOOK,
        {
            "chosen": [{"role": "user", "content": "Add.\n1+1="}, {"role": "assistant", "content": "2"}],
            "rejected": [{"role": "user", "content": "Add.\n1+1="}, {"role": "assistant", "content": "3"}],
        },
    ),
    "ultrafeedback": (  # its prompt is said again in the conversations
        Format.TRL,
        {
            "prompt": "Add.\n1+1=",
            "chosen": [{"role": "user", "content": "Add.\n1+1="}, {"role": "assistant", "content": "2"}],
            "rejected": [{"role": "user", "content": "Add.\n1+1="}, {"role": "assistant", "content": "3"}],
        },
    ),
}


@pytest.mark.parametrize(("format", "row"), PREFERRED.values(), ids=PREFERRED)
def test_a_preference_is_the_same_record_in_every_form(tmp_path: Path, format: Format, row: dict[str, Any]) -> None:
    data = files(tmp_path, row)
    assert f"1 preferences as {format.value} (" in told(data, RowKind.PREFERENCES)
    asked = Conversation(id="rows-1", messages=(USER,), tools=(), images=())
    assert data.preferences(Split.TRAIN) == (
        Preference(id="rows-1", asked=asked, chosen=(ANSWER,), rejected=(WORSE,), margin=0.0),
    )


def test_the_common_beginning_ends_before_the_turn_in_which_two_conversations_part(tmp_path: Path) -> None:
    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(texts)]

    row = {"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "b", "c", "e", "f", "g"), "margin": 1.5}
    (preference,) = files(tmp_path, row).preferences(Split.TRAIN)
    assert [message.content for message in preference.asked.messages] == ["a", "b", "c"]
    assert [message.content for message in preference.chosen] == ["d"]
    assert [message.content for message in preference.rejected] == ["e", "f", "g"]
    assert preference.margin == 1.5
    # They share an answer, and what is asked after it is another thing: only the first question is common.
    row = {"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "b", "x", "e")}
    (preference,) = files(tmp_path, row).preferences(Split.TRAIN)
    assert [message.content for message in preference.asked.messages] == ["a"]


# ----------------------------------------------------------------------------- judged answers, texts

JUDGED = {
    "llama-factory": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "alpaca": {"instruction": "a", "output": "b"},
    "trl": {"prompt": "a", "completion": "b"},
}


@pytest.mark.parametrize("row", JUDGED.values(), ids=JUDGED)
@pytest.mark.parametrize("label", ["kto_tag", "label"])
def test_a_judged_answer_is_the_same_record_in_every_form(tmp_path: Path, row: dict[str, Any], label: str) -> None:
    asked = Conversation(id="rows-1", messages=(Message(role="user", content="a"),), tools=(), images=())
    for desirable in (True, False):
        expected = Judged(
            id="rows-1", asked=asked, answer=(Message(role="assistant", content="b"),), desirable=desirable
        )
        data = files(tmp_path, row | {label: desirable}, name=f"rows.{'jsonl' if desirable else 'ndjson'}")
        assert data.judged(Split.TRAIN) == (expected,)


def test_a_text_is_a_document(tmp_path: Path) -> None:
    (document,) = files(tmp_path, {"text": "Once upon a time", "url": "x"}).documents(Split.TRAIN)
    assert (document.id, document.text) == ("rows-1", "Once upon a time")


# ----------------------------------------------------------------------------- questions


def test_questions_are_read_as_they_are_written_for_other_trainers(tmp_path: Path) -> None:
    rows = {"prompt": "1+1=", "answer": 2, "level": 3}
    easyr1 = {"problem": "1+1=", "answer": "2", "level": 3}
    verl = {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": "1+1="}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 7},
    }
    for number, (row, format) in enumerate(((rows, "rows"), (easyr1, "easyr1"), (verl, "verl"))):
        data = files(tmp_path, row, name=f"{number}.jsonl")
        (question,) = data.questions(Split.TRAIN)
        assert f"1 questions as {format}" in told(data, RowKind.QUESTIONS)
        assert (question.messages, question.answer) == ((Message(role="user", content="1+1="),), "2")
        others = {name: value for name, value in row.items() if name not in ("prompt", "problem") and value != "2"}
        assert question.row == others


def test_an_answer_that_is_no_text_is_also_kept_as_it_is_written(tmp_path: Path) -> None:
    """Rewards of other systems are handed a number as a number: read as a text, it would equal nothing."""
    rows = [{"prompt": "a", "solution": 2}, {"prompt": "a", "solution": "2"}, {"prompt": "a", "solution": 2.5}]
    questions = files(tmp_path, *rows).questions(Split.TRAIN)
    assert [(question.answer, question.row) for question in questions] == [
        ("2", {"solution": 2, "answer": 2}),
        ("2", {"solution": "2"}),
        ("2.5", {"solution": 2.5, "answer": 2.5}),
    ]


def test_answers_of_any_kind_and_none_are_read_only_where_the_format_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": value} for value in (["b", "c"], {"d": 1}, True, 1.5, "e")]
    (first, *_, last) = questions = files(tmp_path, *rows, format=Format.TRL).questions(Split.TRAIN)
    assert [json.loads(one.answer) for one in questions[:4]] == [row["answer"] for row in rows[:4]]
    assert (first.row, last.row, last.answer) == ({"answer": ["b", "c"]}, {}, "e")
    (none,) = files(tmp_path, {"prompt": "a", "solution": 2}, format=Format.TRL).questions(Split.TRAIN)
    assert (none.answer, none.row) == ("", {"solution": 2})
    with pytest.raises(DataError, match=r"not a text or a number \(data\.format=trl takes answers of any kind\)"):
        files(tmp_path, rows[0]).questions(Split.TRAIN)
    with pytest.raises(DataError, match=r"no column 'answer'.*anwser(.|\n)*data\.format=trl takes prompts without"):
        files(tmp_path, {"prompt": "a", "anwser": "2"}).questions(Split.TRAIN)


def test_a_right_answer_of_several_parts_reaches_the_reward_as_json(tmp_path: Path) -> None:
    row = {"prompt": "24?", "reward_model": {"ground_truth": {"target": 24, "numbers": [4, 6]}}}
    (question,) = files(tmp_path, row).questions(Split.TRAIN)
    assert json.loads(question.answer) == {"target": 24, "numbers": [4, 6]}


# ----------------------------------------------------------------------------- what the person says


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    row = {"content": "1+1=", "summary": "2", "q": "x"}
    columns = Columns(prompt="content", response="summary")
    (conversation,) = files(tmp_path, row, columns=columns).conversations(Split.TRAIN)
    assert [message.content for message in conversation.messages] == ["1+1=", "2"]
    (question,) = files(tmp_path, row, columns=replace(columns, answer="summary", response="")).questions(Split.TRAIN)
    # Under its own name, too: a reward written for other rows asks for it there.
    assert (question.answer, question.row) == ("2", {"summary": "2", "q": "x"})


def test_a_form_that_is_named_wins_over_one_that_is_seen(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    row |= {"instruction": "c", "output": "d"}
    (seen,) = files(tmp_path, row).conversations(Split.TRAIN)
    (named,) = files(tmp_path, row, format=Format.ALPACA).conversations(Split.TRAIN)
    (meant,) = files(tmp_path, row, columns=Columns(response="output")).conversations(Split.TRAIN)
    assert (seen.messages[0].content, named.messages[0].content, meant.messages[0].content) == ("a", "c", "c")


def test_most_rows_decide_and_a_bad_one_at_the_start_does_not(tmp_path: Path) -> None:
    rows = [{"Prompt": "1+1=", "anwser": "2"}, *({"prompt": f"{n}", "answer": f"{n}"} for n in range(3))]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no column 'prompt'; the nearest is 'Prompt'"):
        files(tmp_path, *rows).questions(Split.TRAIN)


def test_a_pair_without_a_prompt_does_not_turn_the_file_into_another_form(tmp_path: Path) -> None:
    rows = [{"instruction": f"{n}", "chosen": "a", "rejected": "b"} for n in range(3)]
    with pytest.raises(DataError, match=r"rows\.jsonl:4: no column 'instruction'"):
        files(tmp_path, *rows, {"chosen": "a", "rejected": "b"}).preferences(Split.TRAIN)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no column 'messages'; it has 'mesages', 'url'. Did you mean data.columns.messages='mesages'?"),
        ({"columns": Columns(messages="msgs")}, "no column 'msgs'; it has 'mesages', 'url'."),
        (
            {"format": Format.VERL},
            "data.format is verl, and conversations are read from openai, sharegpt, alpaca, trl.",
        ),
        (
            {"columns": Columns(messages="mesages", system="ur")},
            "data.columns.system is 'ur', and no row has it. Did you mean 'url'?",
        ),
    ],
)
def test_rows_of_no_known_form_are_refused_with_what_there_is(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    row = {"mesages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "url": "c"}
    with pytest.raises(DataError) as caught:
        files(tmp_path, row, **settings).conversations(Split.TRAIN)
    assert words in str(caught.value)


# ----------------------------------------------------------------------------- images


def test_each_image_has_its_mark_and_is_found_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").touch()
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    (conversation,) = files(tmp_path, {"messages": turns, "images": ["images/1.jpg"]}).conversations(Split.TRAIN)
    assert conversation.images == (str(tmp_path / "images/1.jpg"),)
    by_folder = {"messages": turns, "images": ["1.jpg"]}
    (conversation,) = files(tmp_path, by_folder, images_path=str(tmp_path / "images")).conversations(Split.TRAIN)
    assert conversation.images == (str(tmp_path / "images/1.jpg"),)
    for images, kind in (
        ([], "as many images as <image> marks"),
        (["images/1.jpg"] * 2, "as many images as <image> marks"),
        (["images/2.jpg"], "no such image"),
        ([{"bytes": "..."}], "not the name of a file"),
    ):
        with pytest.raises(DataError, match=r"rows\.jsonl:1: .*") as caught:
            files(tmp_path, {"messages": turns, "images": images}).conversations(Split.TRAIN)
        assert kind in str(caught.value)


def test_a_question_keeps_its_images_for_who_looks_at_them(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    (question,) = files(tmp_path, {"problem": "<image>?", "answer": "2", "images": ["1.jpg"]}).questions(Split.TRAIN)
    assert question.row == {"images": ["1.jpg"]}
    with pytest.raises(DataError, match="as many images as"):
        files(tmp_path, {"problem": "<image>?", "answer": "2", "images": []}).questions(Split.TRAIN)


# ----------------------------------------------------------------------------- real files


@pytest.mark.skipif(not LLAMA_FACTORY.exists(), reason="LLaMA-Factory's demo data are not beside the repository")
def test_all_of_llama_factory_s_demo_data_load() -> None:
    def read(kind: RowKind, name: str) -> tuple[Any, ...]:
        return FilesData(path=(str(LLAMA_FACTORY / name),), held_out=0).read(kind).train

    assert len(read(RowKind.CONVERSATIONS, "alpaca_en_demo.json")) == 999
    assert len(read(RowKind.PREFERENCES, "dpo_en_demo.json")) == 300
    assert len(read(RowKind.JUDGED, "kto_en_demo.json")) == 300
    assert len(read(RowKind.DOCUMENTS, "c4_demo.jsonl")) == 300
    with_tools = read(RowKind.CONVERSATIONS, "glaive_toolcall_en_demo.json")
    with_images = read(RowKind.CONVERSATIONS, "mllm_demo.json")
    # Counted in the files themselves.
    assert (len(with_tools), len(with_images)) == (300, 6)
    assert sum(len(message.tool_calls) for row in with_tools for message in row.messages) == 211
    assert sum(message.role == "tool" for row in with_tools for message in row.messages) == 211
    assert sum(bool(row.tools) for row in with_tools) == 191
    assert all(Path(image).is_file() for row in with_images for image in row.images)
    assert len(with_images[0].images) == 2
