"""Every bad row of a data set is found in one pass and told by its place, and no good one is."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows_of_a_test import write_rows

from engine.data.bad_rows import BadRowPolicy, BadRows, BadRowsError, Tolerance
from engine.data.base import BadRow, DataError, RowKind, Split
from engine.data.files import FilesData
from engine.data.forms import Columns

Row = dict[str, Any]
EACH = 40
"""Bad rows of each of the 25 kinds."""
GOOD = 2250
"""Good rows of each of the four files."""

# ----------------------------------------------------------------------------- good rows


def question(number: int) -> Row:
    prompt: Any = f"{number}+1="
    if number % 3 == 0:
        prompt = [{"role": "system", "content": ""}, {"role": "user", "content": prompt}]
    answer: Any = [f"{number + 1}", number + 1, number + 1.5][number % 3]
    # What looks odd and is none of a check's business: other columns, and text in all its forms.
    return {"id": f"q-{number}", "prompt": prompt, "answer": answer, "score": float("nan"), "note": None, "größe": ""}


def conversation(number: int) -> Row:
    odd = ["plain", "\u2028 \ufeff é 漢字 😀 \\ud800", "<|im_start|> {{ x }} NaN", " spaces \t and\nlines \r\n"]
    turns = [
        {"role": "user", "content": f"{number} {odd[number % 4]}"},
        {"role": "assistant", "content": "a", "loss_weight": 1, "tool_calls": None},
    ]
    return {"messages": turns, "images": [], "tools": [None, "", "[]", []][number % 4]}


def preference(number: int) -> Row:
    return {"prompt": f"{number}?", "chosen": "yes", "rejected": "no" if number % 2 else "yes."}


def judged(number: int) -> Row:
    return {"prompt": f"{number}?", "completion": "yes", "label": number % 2 == 0}


# ----------------------------------------------------------------------------- bad rows


def without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def renamed(row: Row, name: str, other: str) -> Row:
    return {other if own == name else own: value for own, value in row.items()}


def said(row: Row, **turn: Any) -> Row:
    return row | {"messages": [*row["messages"], turn]}


def line(row: Row) -> bytes:
    return json.dumps(row).encode()


Spoil = Callable[[Row], Row | bytes]
QUESTIONS: dict[str, tuple[Spoil, str, str]] = {
    # name: (what happens to a good row, the column that is told, the nearest column)
    "a column is missing": (lambda row: without(row, "answer"), "answer", ""),
    "a column is misspelt": (lambda row: renamed(row, "answer", "anwser"), "answer", "anwser"),
    "a column has a capital letter": (lambda row: renamed(row, "prompt", "Prompt"), "prompt", "Prompt"),
    "a column ends in a blank": (lambda row: renamed(row, "answer", "answer "), "answer", "answer "),
    "null": (lambda row: row | {"answer": None}, "answer", ""),
    "a list of numbers for a text": (lambda row: row | {"prompt": [1, 2]}, "prompt", ""),
    "a mapping for a text": (lambda row: row | {"prompt": {"text": "a"}}, "prompt", ""),
    "an empty prompt": (lambda row: row | {"prompt": ""}, "prompt", ""),
    "a prompt of blanks": (lambda row: row | {"prompt": " \n\t\u3000"}, "prompt", ""),
    "an empty answer": (lambda row: row | {"answer": ""}, "answer", ""),
    "no number": (
        lambda row: row | {"answer": float("nan") if row["id"][-1] in "02468" else float("inf")},
        "answer",
        "",
    ),
    "a truth value": (lambda row: row | {"answer": True}, "answer", ""),
    "not JSON": (lambda row: line(row)[:-1], "", ""),
    "not UTF-8": (lambda row: line(row).replace(b'"prompt"', b'"prompt\xff"'), "", ""),
    "a byte order mark in the middle": (lambda row: b"\xef\xbb\xbf" + line(row), "", ""),
    "an id of another row": (lambda row: row | {"id": "q-0"}, "id", ""),
}
CONVERSATIONS: dict[str, tuple[Spoil, str, str]] = {
    "a message without a role": (lambda row: said(row, content="b"), "messages", ""),
    "an unknown role": (lambda row: said(row, role="wizard", content="b"), "messages", ""),
    "half of a surrogate pair": (lambda row: said(row, role="user", content="b\ud83d"), "messages", ""),
    "a NUL character": (lambda row: said(row, role="user", content="b\0"), "messages", ""),
    "a megabyte": (lambda row: said(row, role="user", content="b" * (1 << 20)), "messages", ""),
    "an image without its mark": (lambda row: row | {"images": ["1.jpg"]}, "images", ""),
}
PREFERENCES: dict[str, tuple[Spoil, str, str]] = {
    "two answers that are the same": (lambda row: row | {"rejected": row["chosen"]}, "rejected", ""),
    "no worse answer": (lambda row: renamed(row, "rejected", "rejcted"), "rejected", "rejcted"),
}
JUDGED: dict[str, tuple[Spoil, str, str]] = {
    "a judgement in words": (lambda row: row | {"label": "good"}, "label", ""),
}
FILES = {
    RowKind.QUESTIONS: (question, QUESTIONS),
    RowKind.CONVERSATIONS: (conversation, CONVERSATIONS),
    RowKind.PREFERENCES: (preference, PREFERENCES),
    RowKind.JUDGED: (judged, JUDGED),
}


def planted(kind: RowKind, folder: Path) -> tuple[FilesData, FilesData, dict[str, tuple[str, str, str]]]:
    """A file with bad rows among good ones, the same file without them, and what is wrong where."""
    good, kinds = FILES[kind]
    chance = random.Random(kind.value)
    rows: list[tuple[Row | bytes, tuple[str, str, str] | None]] = [(good(number), None) for number in range(GOOD)]
    for name, (spoil, column, nearest) in kinds.items():
        # After the first row, whose id some of them repeat.
        for number in range(EACH):
            spoiled = spoil(good(GOOD + number))
            rows.insert(chance.randint(1, len(rows)), (spoiled, (name, column, nearest)))
    path = folder / f"{kind.value}.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else line(row) for row, _ in rows) + b"\n")
    clean = write_rows(folder / f"clean-{kind.value}.jsonl", [row for row, wrong in rows if wrong is None])
    columns = Columns(id="id") if kind is RowKind.QUESTIONS else Columns()
    dirty = FilesData(path=(str(path),), columns=columns, bad_rows=BadRowPolicy.SKIP, max_bad_share=0.3)
    expected = {f"{path}:{number}": wrong for number, (_, wrong) in enumerate(rows, start=1) if wrong is not None}
    return dirty, replace(dirty, path=(clean,), bad_rows=BadRowPolicy.ERROR), expected


def test_a_thousand_bad_rows_of_25_kinds_are_found_among_9000_good_ones(tmp_path: Path) -> None:
    kinds = 0
    found_rows = seen = 0
    for kind, (_, spoils) in FILES.items():
        dirty, clean, expected = planted(kind, tmp_path)
        reading = dirty.read(kind)
        found = {bad.where: bad for bad in reading.bad.found}
        missed = {where: wrong for where, wrong in expected.items() if where not in found}
        assert missed == {}
        assert found.keys() - expected.keys() == set()
        for where, (name, column, nearest) in expected.items():
            bad = found[where]
            assert (bad.column, bad.nearest or nearest) == (column, nearest), (name, bad)
            assert len(bad.value) <= 80, name
            assert bad.kind and bad.problem, name
        # What is trained on is what a file without them gives. Their ids tell their lines, unless they have their own.
        same = clean.read(kind)
        for own, other in ((reading.train, same.train), (reading.held_out, same.held_out)):
            assert [anonymous(row) for row in own] == [anonymous(row) for row in other]
            assert kind is not RowKind.QUESTIONS or [row.id for row in own] == [row.id for row in other]
        kinds, found_rows, seen = kinds + len(spoils), found_rows + len(found), seen + reading.bad.seen
    assert (kinds, found_rows, seen) == (25, 1000, 10_000)


def anonymous(record: Any) -> str:
    """Not a record itself: NaN is not equal to NaN."""
    asked = {"asked": replace(record.asked, id="")} if hasattr(record, "asked") else {}
    return repr(replace(record, id="", **asked))


def test_a_truncated_last_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    whole = b'{"prompt": "a", "completion": "b"}\n' * 3
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"rows\.jsonl:3: .*: not JSON"):
        FilesData(path=(str(path),)).conversations(Split.TRAIN)


# ----------------------------------------------------------------------------- one by one

NAMES = ["role", "content", "from", "value", "function", "name", "arguments", "tool_calls", "type", "text", "messages"]
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (
            RowKind.QUESTIONS,
            question(1),
            {"prompt": "a", "answer": "2", "response": "2"},
            "column 'response' is '2': it has",
        ),
        (
            RowKind.QUESTIONS,
            question(1),
            {"prompt": [], "answer": "2"},
            "column 'prompt' is []: not a list of messages",
        ),
        (RowKind.QUESTIONS, question(1), {"prompt": [{"role": "user"}], "answer": "2"}, "not a message"),
        (RowKind.QUESTIONS, question(1), {"prompt": TURNS[1:], "answer": "2"}, "nothing is asked before"),
        (RowKind.CONVERSATIONS, {"messages": TURNS}, {"messages": TURNS[:1]}, "no assistant turn"),
        (
            RowKind.CONVERSATIONS,
            {"messages": TURNS},
            {"messages": TURNS[1:]},
            "nothing is asked before the assistant's",
        ),
        (RowKind.CONVERSATIONS, {"messages": TURNS}, {"messages": "Hello."}, "is 'Hello.': not a list of messages"),
        (
            RowKind.CONVERSATIONS,
            {"messages": TURNS},
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "parts that are no text",
        ),
        (
            RowKind.CONVERSATIONS,
            {"messages": TURNS},
            {"messages": [TURNS[0], {"role": "function_call", "content": "f()"}]},
            "not a call of a function",
        ),
        (
            RowKind.CONVERSATIONS,
            {"messages": TURNS, "tools": []},
            {"messages": TURNS, "tools": "f"},
            "not a list of tools",
        ),
        (
            RowKind.CONVERSATIONS,
            {"instruction": "a", "output": "b", "history": []},
            {"instruction": "a", "output": "b", "history": [["c"]]},
            "not a list of pairs",
        ),
        (
            RowKind.PREFERENCES,
            {"messages": TURNS[:1], "chosen": "b", "rejected": "c"},
            {"messages": TURNS, "chosen": "b", "rejected": "c"},
            "its last turn is the assistant's: nothing is asked",
        ),
        (
            RowKind.PREFERENCES,
            {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "c"}]},
            {"chosen": TURNS, "rejected": [{"role": "user", "content": "x"}, TURNS[1]]},
            "chosen and rejected answer different questions",
        ),
        (
            RowKind.PREFERENCES,
            {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "c"}]},
            {"chosen": TURNS, "rejected": TURNS},
            "chosen and rejected are the same",
        ),
        (
            RowKind.PREFERENCES,
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1},
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"},
            "column 'margin' is 'much': not a number",
        ),
        (
            RowKind.JUDGED,
            {"messages": TURNS, "label": True},
            {"messages": TURNS[:1], "label": True},
            "does not end with",
        ),
        (
            RowKind.JUDGED,
            {"messages": TURNS, "label": True},
            {"messages": TURNS, "label": 1},
            "is 1: not true or false",
        ),
    ],
)
def test_a_bad_row_is_told_with_the_reason(tmp_path: Path, kind: RowKind, good: Row, bad: Row, words: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [good, good, "", bad])
    with pytest.raises(DataError) as caught:
        FilesData(path=(path,), held_out=0).read(kind)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert words in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=3),
    max_leaves=8,
)
WHOLE_ROWS = {
    RowKind.QUESTIONS: [question(0), {"prompt": TURNS[:1], "reward_model": {"ground_truth": 1}, "images": []}],
    RowKind.DOCUMENTS: [{"text": "a"}],
    RowKind.CONVERSATIONS: [
        {"messages": TURNS, "tools": [], "images": [], "system": ""},
        {"instruction": "a", "input": "", "output": "b", "history": [["c", "d"]]},
    ],
    RowKind.PREFERENCES: [
        {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": "c", "margin": 1.0},
        {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "c"}]},
    ],
    RowKind.JUDGED: [{"messages": TURNS, "kto_tag": True}, {"prompt": "a", "completion": "b", "label": False}],
}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_column_is_a_record_or_a_bad_row_and_never_a_crash(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(WHOLE_ROWS)))
    row = data.draw(st.sampled_from(WHOLE_ROWS[kind]))
    spoiled = row | {data.draw(st.sampled_from(list(row))): data.draw(JSON)}
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder) / "rows.jsonl", [row, row, spoiled])
        read = FilesData(path=(path,), held_out=0, bad_rows=BadRowPolicy.SKIP, max_bad_share=0.9).read(kind)
    assert len(read.train) + len(read.bad.found) == 3
    assert all(len(bad.value) <= 80 for bad in read.bad.found)
    f"{read.bad.counted()}{read.bad.found}".encode()  # what is told can be printed


# ----------------------------------------------------------------------------- policies


def rows_with(tmp_path: Path, *, bad: int, good: int) -> str:
    rows = [{"prompt": f"{n}", "completion": ""} for n in range(bad)]
    return write_rows(tmp_path / "rows.jsonl", rows + [{"prompt": f"{n}", "completion": "b"} for n in range(good)])


def test_a_run_tells_the_first_bad_rows_and_a_check_all_of_them(tmp_path: Path) -> None:
    data = FilesData(path=(rows_with(tmp_path, bad=30, good=70),))
    told = []
    for check in (False, True):
        with pytest.raises(DataError) as caught:
            replace(data, check=check).conversations(Split.TRAIN)
        told.append(str(caught.value))
    assert [text.count("column 'completion' is '': empty.") for text in told] == [20, 30]
    assert "... and 10 more; data.check=true tells all" in told[0]
    for text in told:
        assert "30 of 100 rows are bad: 30 x completion: empty" in text
        assert text.splitlines()[-1] == "  Mend them, or leave them out with data.bad_rows=skip."


def test_bad_rows_are_skipped_up_to_a_share_and_a_check_skips_none(tmp_path: Path) -> None:
    path = rows_with(tmp_path, bad=10, good=90)
    data = FilesData(path=(path,), bad_rows=BadRowPolicy.SKIP, held_out=0)
    assert len(data.conversations(Split.TRAIN)) == 90
    with pytest.raises(DataError, match=r"That is 10\.0%, and data\.max_bad_share is 9\.0%"):
        replace(data, max_bad_share=0.09).conversations(Split.TRAIN)
    with pytest.raises(DataError, match="10 of 100 rows are bad"):
        replace(data, check=True).conversations(Split.TRAIN)


def test_bad_rows_are_told_before_too_few_are_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5 of 8 rows are bad"):
        FilesData(path=(rows_with(tmp_path, bad=5, good=3),), held_out=4).conversations(Split.TRAIN)


def test_skipped_rows_are_listed_in_a_file(tmp_path: Path) -> None:
    data = FilesData(path=(rows_with(tmp_path, bad=2, good=98),), bad_rows=BadRowPolicy.SKIP)
    listed = data.bad(RowKind.CONVERSATIONS).write(tmp_path)
    rows = [BadRow(**json.loads(text)) for text in listed.read_text().splitlines()]
    assert [(row.id, row.where) for row in rows] == [(f"rows-{n}", f"{tmp_path}/rows.jsonl:{n}") for n in (1, 2)]
    assert rows[0].kind == "empty"


def test_any_step_that_looks_at_one_row_at_a_time_can_collect() -> None:
    def rendered(number: int) -> int:
        if number % 5 == 0:
            raise DataError(f"it has {number} tokens.", where=f"row-{number}", advice="Cut it.", kind="too long")
        return number * 2

    bad = BadRows(Tolerance(policy=BadRowPolicy.SKIP, max_share=0.2))
    assert list(bad.collect(range(1, 11), rendered)) == [2, 4, 6, 8, 12, 14, 16, 18]
    bad.settle()
    assert bad.counted() == "2 x too long"
    strict = BadRows(Tolerance())
    made: Sequence[int] = list(strict.collect(range(1, 11), rendered))
    assert len(made) == 8
    with pytest.raises(BadRowsError, match="row-5: it has 5 tokens") as caught:
        strict.settle()
    assert [row.where for row in caught.value.found] == ["row-5", "row-10"]
