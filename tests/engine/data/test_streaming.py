"""A stream gives the rows as they are read: shuffled by seed, checked, and able to go on where it stopped."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from rows_of_a_test import write_rows

from engine.data import reading
from engine.data.bad_rows import BadRowPolicy
from engine.data.base import Conversation, DataError, RowKind, Split
from engine.data.files import FilesData
from engine.data.mixing import Mix


def row(number: int, letter: str = "a") -> dict[str, str]:
    return {"prompt": f"{letter}{number}", "completion": "x"}


def streamed(path: Path | tuple[str, ...], **settings: Any) -> FilesData:
    paths = path if isinstance(path, tuple) else (str(path),)
    return FilesData(path=paths, streaming=True, **({"held_out": 0, "shuffle_rows": 7} | settings))


def drawn(data: FilesData, count: int, *, after: int = 0) -> list[str]:
    rows = data.stream(RowKind.CONVERSATIONS, drawn=after).take(count)
    return [row.messages[0].content for row in rows if isinstance(row, Conversation)]


def test_each_pass_gives_every_row_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    data = streamed(Path(write_rows(tmp_path / "a.jsonl", map(row, range(30)))))
    rows = drawn(data, 90)
    passes = [rows[:30], rows[30:60], rows[60:]]
    assert all(sorted(one) == sorted(f"a{n}" for n in range(30)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert rows == drawn(data, 90) != drawn(replace(data, seed=1), 90)


@pytest.mark.parametrize("after", [1, 6, 29, 30, 31, 75])
def test_it_goes_on_where_it_stopped(tmp_path: Path, after: int) -> None:
    data = streamed(Path(write_rows(tmp_path / "a.jsonl", map(row, range(30)))))
    stream = data.stream(RowKind.CONVERSATIONS)
    stream.take(after)
    assert stream.drawn == after
    again = data.stream(RowKind.CONVERSATIONS, drawn=after)
    assert again.take(20) == stream.take(20)
    assert again.drawn == stream.drawn == after + 20


def test_every_type_of_file_is_streamed_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(number) for number in range(30)]
    write_rows(tmp_path / "a.jsonl", rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=10)
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "".join(f"a{n},x\n" for n in range(30)))
    expected = drawn(streamed(tmp_path / "a.jsonl"), 40)
    assert drawn(streamed(tmp_path / "a.parquet"), 40) == expected
    assert drawn(streamed(tmp_path / "a.csv"), 40) == expected

    class Hub:
        @staticmethod
        def load_dataset(path: str, *, split: str, streaming: bool) -> Iterator[dict[str, str]]:
            assert streaming
            return iter(rows)

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert drawn(streamed(("o/n@train",)), 40) == expected


def test_no_more_is_read_than_the_head_and_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHECKED", 20)
    monkeypatch.setattr(reading, "LOOKED_AT", 5)
    seen = []

    class Hub:
        @staticmethod
        def load_dataset(path: str, *, split: str, streaming: bool) -> Iterator[dict[str, str]]:
            for number in range(10_000):
                seen.append(number)
                yield row(number)

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    stream = streamed(("o/n",)).stream(RowKind.CONVERSATIONS)
    assert max(seen) < 25
    stream.take(50)
    assert max(seen) < 70


def test_the_first_rows_are_held_out_and_never_drawn(tmp_path: Path) -> None:
    data = streamed(Path(write_rows(tmp_path / "a.jsonl", map(row, range(30)))), held_out=4)
    stream = data.stream(RowKind.CONVERSATIONS)
    assert [record.id for record in stream.held_out] == [f"a-{n}" for n in range(1, 5)]
    assert sorted(record.id for record in stream.take(26)) == sorted(f"a-{n}" for n in range(5, 31))
    layout = "conversations as trl (prompt: 'prompt', response: 'completion')"
    assert stream.described == (f"{tmp_path}/a.jsonl: a stream of {layout}",)


def test_rows_of_their_own_may_be_held_out_of_a_stream(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / f"{letter}.jsonl", (row(n, letter) for n in range(9))) for letter in "abc"]
    data = streamed((paths[0], paths[1]), held_out_path=(paths[2],), held_out=4, fractions=(1.0, 0.5))
    stream = data.stream(RowKind.CONVERSATIONS)
    assert [record.id for record in stream.held_out] == [f"c-{n}" for n in range(1, 10)]
    assert Counter(text[0] for text in drawn(data, 13))["a"] >= 7


def test_sources_are_mixed_as_they_pass(tmp_path: Path) -> None:
    paths = (
        write_rows(tmp_path / "a.jsonl", (row(n, "a") for n in range(300))),
        write_rows(tmp_path / "b.jsonl", (row(n, "b") for n in range(100))),
    )
    by_weight = streamed(paths, mix=Mix.INTERLEAVE_UNDER, weights=(1.0, 3.0))
    counts = Counter(text[0] for text in drawn(by_weight, 120))
    assert counts["b"] / counts["a"] == pytest.approx(3, rel=0.4)
    fractions = drawn(streamed(paths, fractions=(0.1, 1.0)), 120)
    assert Counter(text[0] for text in fractions)["a"] < 50
    assert drawn(streamed(paths, fractions=(0.1, 1.0)), 120) == fractions


# ----------------------------------------------------------------------------- bad rows


def test_the_first_rows_are_checked_at_once_and_the_others_as_they_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHECKED", 20)
    rows: list[object] = [row(number) for number in range(60)]
    rows[10] = {"prompt": "a10", "completion": ""}
    data = streamed(Path(write_rows(tmp_path / "a.jsonl", rows)))
    with pytest.raises(DataError, match=r"a\.jsonl:11: column 'completion' is '': empty"):
        data.stream(RowKind.CONVERSATIONS)
    rows[10], rows[40] = row(10), "{"
    stream = streamed(Path(write_rows(tmp_path / "a.jsonl", rows))).stream(RowKind.CONVERSATIONS)
    assert len(stream.take(20)) == 20
    with pytest.raises(DataError, match=r"a\.jsonl:41: '\{': not JSON"):
        stream.take(40)


def test_bad_rows_are_left_out_as_they_pass_up_to_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHECKED", 20)
    rows: list[object] = [row(number) for number in range(100)]
    rows[40] = rows[50] = "{"
    path = Path(write_rows(tmp_path / "a.jsonl", rows))
    stream = streamed(path, bad_rows=BadRowPolicy.SKIP).stream(RowKind.CONVERSATIONS)
    assert len({record.id for record in stream.take(98)}) == 98
    stream.take(150)
    assert [bad.where for bad in stream.bad.found] == [f"{path}:41", f"{path}:51"]  # once, not once a pass
    for number in range(60, 90):
        rows[number] = "{"
    path = Path(write_rows(tmp_path / "b.jsonl", rows))
    stream = streamed(path, bad_rows=BadRowPolicy.SKIP).stream(RowKind.CONVERSATIONS)
    with pytest.raises(DataError, match=r"data\.max_bad_share is 10\.0%"):
        stream.take(98)


def test_a_stream_is_not_read_whole_by_mistake(tmp_path: Path) -> None:
    data = streamed(Path(write_rows(tmp_path / "a.jsonl", map(row, range(3)))))
    with pytest.raises(DataError, match=r"data\.streaming: conversations are read whole here"):
        data.conversations(Split.TRAIN)
