"""Files of every type give the same rows, folders and the hub too, and what cannot be read is told by its place."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, parquet
from rows_of_a_test import write_rows

from engine.data.base import Conversation, DataError, RowKind, Split
from engine.data.files import FilesData

ROWS = [
    {"instruction": "Add.", "input": "1+1=", "output": '2, or\n"two"', "tools": None},
    {"instruction": "Größer?", "input": None, "output": "5\u20287", "tools": json.dumps([{"name": "f"}])},
]


def as_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def as_arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], object]] = {
    "rows.jsonl": lambda path: write_rows(path, ROWS),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: write_rows(path, ROWS),
    "rows.csv": as_csv,
    "rows.parquet": lambda path: parquet.write_table(pa.Table.from_pylist(ROWS), path),
    "rows.arrow": as_arrow_stream,
    "rows.feather": lambda path: feather.write_feather(pa.Table.from_pylist(ROWS), str(path), compression="lz4"),
}


def read(path: Path | str, **settings: Any) -> Sequence[Conversation]:
    return FilesData(path=(str(path),), **({"held_out": 0} | settings)).conversations(Split.TRAIN)


@pytest.mark.parametrize("name", WRITERS)
def test_every_type_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    first, second = read(tmp_path / name)
    assert [message.content for message in first.messages] == ["Add.\n1+1=", '2, or\n"two"']
    assert [message.content for message in second.messages] == ["Größer?", "5\u20287"]
    assert (first.tools, second.tools) == ((), ({"type": "function", "function": {"name": "f"}},))
    assert first.id == f"{Path(name).stem}-{2 if name.endswith('.csv') else 1}"  # a line of a csv, where it begins


def test_messages_may_stand_in_a_cell_of_a_csv_as_json(tmp_path: Path) -> None:
    turns = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages", "label"], [turns, "True"], [turns, "false"]])
    assert [message.content for message in read(tmp_path / "rows.csv")[0].messages] == ["a", "b"]
    judged = FilesData(path=(str(tmp_path / "rows.csv"),), held_out=0).judged(Split.TRAIN)
    assert [one.desirable for one in judged] == [True, False]


def test_each_line_of_a_text_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOnce upon\r\n\n  a time\n")
    documents = FilesData(path=(str(tmp_path / "a.txt"),), held_out=0).documents(Split.TRAIN)
    assert [(document.id, document.text) for document in documents] == [("a-1", "Once upon"), ("a-3", "  a time")]


def test_a_unicode_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a\u2028b", "completion": "c"}\n', encoding="utf-8")
    assert read(tmp_path / "a.jsonl")[0].messages[0].content == "a\u2028b"


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistakes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n\r\n')
    assert [message.content for message in read(tmp_path / "a.jsonl")[0].messages] == ["a", "b"]


# ----------------------------------------------------------------------------- folders and splits


def test_a_folder_is_all_of_its_files_and_a_split_those_that_are_named_like_it(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl", "more/train/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(tmp_path / name, [{"prompt": name, "completion": "b"}])
    write_rows(tmp_path / "dataset_info.json", [{"description": "about the rows"}])
    write_rows(tmp_path / ".hidden.jsonl", ["{"])
    (tmp_path / "README.md").touch()

    def prompts(path: str) -> list[str]:
        return [conversation.messages[0].content for conversation in read(path)]

    assert len(prompts(str(tmp_path))) == 4
    assert prompts(f"{tmp_path}@test") == ["test.jsonl"]
    assert prompts(f"{tmp_path}@train") == [
        "more/train/a.jsonl",
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl",
    ]
    assert len({conversation.id for conversation in read(tmp_path)}) == 4
    with pytest.raises(DataError, match=r"no split 'dev'\.\n.*test\.jsonl"):
        read(f"{tmp_path}@dev")


def test_files_of_a_folder_that_has_other_columns_are_told_row_by_row(tmp_path: Path) -> None:
    good = pa.Table.from_pylist([{"prompt": "a", "completion": "b"}] * 3)
    parquet.write_table(good, tmp_path / "1.parquet")
    parquet.write_table(good.rename_columns(["prompt", "complete"]), tmp_path / "2.parquet")
    parquet.write_table(good, tmp_path / "3.parquet")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert str(caught.value).count("2.parquet, row") == 3
    assert "the nearest is 'complete'" in str(caught.value)


# ----------------------------------------------------------------------------- the hub


class Hub:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    def load_dataset(self, *names: str, **options: Any) -> list[dict[str, str]]:
        self.asked.append((names, options))
        return [{"prompt": "a", "completion": "b"}] * 2


def test_a_hub_id_names_its_split_and_its_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    ids = [row.id for path in ("o/n", "o/n@test", "o/n:en@test_sft") for row in read(path)]
    assert ids == ["n-train-1", "n-train-2", "n-test-1", "n-test-2", "n-test_sft-1", "n-test_sft-2"]
    assert hub.asked == [
        (("o/n",), {"split": "train"}),
        (("o/n",), {"split": "test"}),
        (("o/n", "en"), {"split": "test_sft"}),
    ]


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: str, **__: Any) -> None:
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"owner/name: cannot be loaded from the hub: offline\n.*or go online"):
        read("owner/name")


# ----------------------------------------------------------------------------- what cannot be read


def broken(tmp_path: Path, name: str, content: bytes) -> str:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    return str(caught.value).replace(f"{tmp_path}/", "")


GOOD = b'{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", GOOD + b'{"prompt": "a"', 'a.jsonl:2: \'{"prompt": "a"\': not JSON.'),
        ("a.jsonl", GOOD + b"[1, 2]\n", "a.jsonl:2: [1, 2]: not a JSON object."),
        ("a.jsonl", GOOD + b'{"prompt": "\xff"}\n' + GOOD, 'a.jsonl:2: b\'{"prompt": "\\xff"}\\n\': not UTF-8.'),
        ("a.jsonl", GOOD + b"\xef\xbb\xbf" + GOOD, "a.jsonl:2: "),
        ("a.json", b"[" + GOOD + b", 3]", "a.json, row 2: 3: not a JSON object."),
        ("a.json", b"[" + GOOD, "a.json: not JSON: Expecting ',' delimiter: line 2 column 1"),
        ("a.json", b"[\xff]", "a.json: not UTF-8"),
        ("a.csv", b"prompt,completion\na,b\nc\n", "a.csv:3: ['c']: its number of cells is not that of the first line."),
        (
            "a.csv",
            b"prompt,completion\na,b\n\xff,d\n",
            "a.csv:3: column 'prompt' is '\\udcff': has half of a surrogate",
        ),
        ("a.csv", b'prompt,completion\na,b\n"c,d\n', "a.csv:3: not CSV."),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read after row 0"),
        ("a.arrow", b"rows", "a.arrow: cannot be read after row 0"),
        ("a.jsonl", b"\n \n", "a.jsonl: no rows."),
        ("a.xlsx", b"", "a.xlsx: no rows are read from .xlsx."),
    ],
)
def test_what_cannot_be_read_is_told_by_its_place(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    assert broken(tmp_path, name, content).startswith(words)


def test_a_file_that_is_not_there_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [])
    with pytest.raises(DataError, match=r"tran\.jsonl: no such file\.\n  Did you mean .*train\.jsonl\?"):
        read(tmp_path / "tran.jsonl")
    with pytest.raises(DataError, match=r"/nowhere/at/all: no such file"):
        read("/nowhere/at/all")


# ----------------------------------------------------------------------------- read once


def test_a_file_is_read_once_for_both_splits_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.data import readers

    times = []

    def counted(path: Path, label: str) -> object:
        times.append(path)
        return readers.read_json(path, label)

    monkeypatch.setitem(readers.READERS, ".jsonl", counted)
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": f"{n}", "completion": "b"} for n in range(4)])
    data = FilesData(path=(path,), held_out=1)
    assert [len(data.conversations(split)) for split in Split] == [3, 1]
    assert data.described(RowKind.CONVERSATIONS) == (
        f"{path}: 4 conversations as trl (prompt: 'prompt', response: 'completion')",
    )
    assert len(times) == 1
    write_rows(tmp_path / "a.jsonl", [{"prompt": f"{n}", "completion": "b"} for n in range(5)])
    assert [len(data.conversations(split)) for split in Split] == [4, 1]
    assert len(times) == 2
