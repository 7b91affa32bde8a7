"""LLaMA-Factory's dataset_info.json is read as LLaMA-Factory reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rows_of_a_test import LLAMA_FACTORY, write_rows

from engine.data.base import DataError, RowKind, Split
from engine.data.files import FilesData
from engine.data.forms import Columns

ENTRIES: dict[str, dict[str, Any]] = {
    "plain": {"file_name": "plain.json"},
    "shards": {"file_name": "shards"},
    "few": {"file_name": "plain.json", "num_samples": 2},
    "many": {"file_name": "plain.json", "num_samples": 9},
    "own_names": {"file_name": "own.jsonl", "columns": {"prompt": "q", "response": "a", "query": None}},
    "own_tags": {
        "file_name": "tags.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "said", "system": "sys"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "you"},
    },
    "pairs": {
        "file_name": "pairs.jsonl",
        "ranking": True,
        "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    },
    "judged": {"file_name": "judged.jsonl", "columns": {"prompt": "q", "response": "a", "kto_tag": "ok"}},
    "text": {"file_name": "text.jsonl", "columns": {"prompt": "body"}},
    "hub": {"hf_hub_url": "o/n", "subset": "en", "split": "train_sft", "folder": "python"},
    "script": {"script_url": "mine.py"},
    "absent": {"file_name": "absent.json"},
    "film": {"file_name": "plain.json", "columns": {"videos": "videos"}},
    "odd": {"file_name": "plain.json", "formatting": "xml"},
    "misspelt": {"file_name": "plain.json", "columns": {"promt": "q"}},
}


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    (tmp_path / "dataset_info.json").write_text(json.dumps(ENTRIES))
    plain = [{"instruction": f"{n}", "input": "", "output": "b"} for n in range(4)]
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    (tmp_path / "shards").mkdir()
    for number in range(2):
        write_rows(tmp_path / f"shards/{number}.jsonl", plain[:2])
    turns = [{"who": "me", "what": "a"}, {"who": "you", "what": "b"}]
    write_rows(tmp_path / "own.jsonl", [{"q": "a", "a": "b", "instruction": "x", "output": "y"}])
    write_rows(tmp_path / "tags.jsonl", [{"said": turns, "sys": "Be brief."}])
    write_rows(tmp_path / "pairs.jsonl", [{"q": "a", "good": "b", "bad": "c"}])
    write_rows(tmp_path / "judged.jsonl", [{"q": "a", "a": "b", "ok": False}])
    write_rows(tmp_path / "text.jsonl", [{"body": "Once", "text": "x"}])
    return tmp_path


def data(registry: Path, *names: str, **settings: Any) -> FilesData:
    return FilesData(path=(str(registry / "dataset_info.json"),), names=names, **({"held_out": 0} | settings))


def contents(registry: Path, *names: str, **settings: Any) -> list[list[str]]:
    rows = data(registry, *names, **settings).conversations(Split.TRAIN)
    return [[message.content for message in row.messages] for row in rows]


def test_a_name_is_a_file_or_a_folder_beside_the_registry(registry: Path) -> None:
    assert contents(registry, "plain") == [[f"{n}", "b"] for n in range(4)]
    assert len(contents(registry, "shards", "plain")) == 8
    rows = data(registry, "shards").conversations(Split.TRAIN)
    assert [row.id for row in rows] == ["shards-0-1", "shards-0-2", "shards-1-1", "shards-1-2"]
    folder = FilesData(path=(str(registry),), names=("plain",), held_out=0)
    assert folder.conversations(Split.TRAIN) == data(registry, "plain").conversations(Split.TRAIN)


def test_columns_tags_and_ranking_are_honoured(registry: Path) -> None:
    assert contents(registry, "own_names") == [["a", "b"]]
    assert contents(registry, "own_tags") == [["Be brief.", "a", "b"]]
    (pair,) = data(registry, "pairs").preferences(Split.TRAIN)
    assert [pair.asked.messages[0].content, pair.chosen[0].content, pair.rejected[0].content] == ["a", "b", "c"]
    (judged,) = data(registry, "judged").judged(Split.TRAIN)
    assert (judged.answer[0].content, judged.desirable) == ("b", False)
    assert data(registry, "text").documents(Split.TRAIN)[0].text == "Once"
    with pytest.raises(DataError, match="plain: it is no set of preferences"):
        data(registry, "plain").preferences(Split.TRAIN)


def test_what_the_person_says_wins_over_the_registry(registry: Path) -> None:
    assert contents(registry, "own_names", columns=Columns(response="output")) == [["a", "y"]]


def test_num_samples_are_chosen_by_seed_and_come_again_where_there_are_fewer_rows(registry: Path) -> None:
    few = contents(registry, "few")
    assert len(few) == 2 and few == contents(registry, "few")
    assert {tuple(map(tuple, contents(registry, "few", seed=seed))) for seed in range(9)} != {tuple(map(tuple, few))}
    many = data(registry, "many").conversations(Split.TRAIN)
    assert len(many) == 9 and len({row.id for row in many}) == 9
    assert {row.messages[0].content for row in many} == {"0", "1", "2", "3"}


def test_rows_may_be_held_out_by_name(registry: Path) -> None:
    held_out = data(registry, "plain", held_out_names=("own_names",), held_out=3)
    assert [len(held_out.conversations(split)) for split in Split] == [4, 1]


def test_a_data_set_of_the_hub_has_its_subset_split_and_folder(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        @staticmethod
        def load_dataset(*names: str, **options: str) -> list[dict[str, str]]:
            assert (names, options) == (("o/n", "en"), {"split": "train_sft", "data_dir": "python"})
            return [{"instruction": "a", "output": "b"}]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert contents(registry, "hub") == [["a", "b"]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plian", "no data set 'plian'.\n  Did you mean plain?"),
        ("script", "its place is script_url."),
        ("absent", "absent: no such file"),
        ("film", "it has videos."),
        ("odd", "formatting is 'xml'"),
        ("misspelt", "unknown column 'promt'"),
    ],
)
def test_what_cannot_be_loaded_is_told_by_name(registry: Path, name: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        contents(registry, name)
    assert words in str(caught.value)
    assert "dataset_info.json" in str(caught.value)


def test_a_registry_without_names_and_names_without_one_are_refused(registry: Path) -> None:
    with pytest.raises(DataError, match=r"a list of data sets\.\n  Choose some: data\.names"):
        contents(registry)
    with pytest.raises(DataError, match=r"no dataset_info\.json"):
        FilesData(path=(str(registry / "plain.json"),), names=("plain",)).conversations(Split.TRAIN)
    with pytest.raises(ValueError, match="path is a list of 2, and names are looked up in one"):
        FilesData(path=("a", "b"), names=("plain",))


@pytest.mark.skipif(not LLAMA_FACTORY.exists(), reason="LLaMA-Factory's demo data are not beside the repository")
def test_the_demo_data_are_the_same_by_name_and_by_file() -> None:
    kinds = {
        "alpaca_en_demo": RowKind.CONVERSATIONS,
        "glaive_toolcall_en_demo": RowKind.CONVERSATIONS,
        "mllm_demo": RowKind.CONVERSATIONS,
        "dpo_en_demo": RowKind.PREFERENCES,
        "kto_en_demo": RowKind.JUDGED,
        "c4_demo": RowKind.DOCUMENTS,
    }
    registry = json.loads((LLAMA_FACTORY / "dataset_info.json").read_text())
    for name, kind in kinds.items():
        by_file = FilesData(path=(str(LLAMA_FACTORY / registry[name]["file_name"]),)).read(kind)
        by_name = data(LLAMA_FACTORY, name, held_out=0.05).read(kind)
        assert (by_name.train, by_name.held_out) == (by_file.train, by_file.held_out), name
