"""Several sources as one: how many rows of each, in which order, and the same for the same seed."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rows_of_a_test import write_rows

from engine.data.base import DataError, Split
from engine.data.files import FilesData
from engine.data.mixing import HeldOutFrom, Mix, mixed, shuffled


def sources(tmp_path: Path, *counts: int) -> tuple[str, ...]:
    """Files with so many rows, which say their file's letter and their number."""
    return tuple(
        write_rows(tmp_path / f"{letter}.jsonl", [{"prompt": f"{letter}{n}", "completion": "x"} for n in range(count)])
        for letter, count in zip("abc", counts, strict=False)
    )


def read(paths: tuple[str, ...], split: Split = Split.TRAIN, **settings: Any) -> list[str]:
    data = FilesData(path=paths, **({"held_out": 0} | settings))
    return [row.messages[0].content for row in data.conversations(split)]


# ----------------------------------------------------------------------------- order


def test_sources_follow_each_other_or_take_turns_until_the_first_or_the_last_runs_out(tmp_path: Path) -> None:
    paths = sources(tmp_path, 2, 4)
    assert read(paths) == ["a0", "a1", "b0", "b1", "b2", "b3"]
    assert read(paths, mix=Mix.INTERLEAVE_UNDER) == ["a0", "b0", "a1", "b1"]
    assert read(paths, mix=Mix.INTERLEAVE_OVER) == ["a0", "b0", "a1", "b1", "a0", "b2", "a1", "b3"]


def test_weights_say_how_often_each_source_is_drawn_from_and_the_seed_decides_when(tmp_path: Path) -> None:
    paths = sources(tmp_path, 3000, 1000)
    drawn = read(paths, mix=Mix.INTERLEAVE_UNDER, weights=(1.0, 3.0))
    counts = Counter(text[0] for text in drawn)
    assert counts["b"] == 1000
    assert counts["a"] / counts["b"] == pytest.approx(1 / 3, abs=0.05)
    assert len(set(drawn)) == len(drawn)  # under: no row twice
    assert drawn == read(paths, mix=Mix.INTERLEAVE_UNDER, weights=(1.0, 3.0))
    assert drawn != read(paths, mix=Mix.INTERLEAVE_UNDER, weights=(1.0, 3.0), seed=1)
    over = read(paths, mix=Mix.INTERLEAVE_OVER, weights=(1.0, 3.0))
    assert len({text for text in over if text[0] == "a"}) == 3000  # over: every row at least once
    assert len(over) == pytest.approx(12_000, rel=0.05)


def test_it_mixes_as_the_datasets_library_does(tmp_path: Path) -> None:
    """An independent source: the stopping strategies of `datasets.interleave_datasets`."""
    import datasets

    texts = [[f"a{n}" for n in range(2)], [f"b{n}" for n in range(4)]]
    parts = [datasets.Dataset.from_dict({"x": text}) for text in texts]
    own = [partial(iter, text) for text in texts]
    under = datasets.interleave_datasets(parts, stopping_strategy="first_exhausted")["x"]
    assert list(mixed(own, Mix.INTERLEAVE_UNDER, (), 0)) == list(under)
    over = datasets.interleave_datasets(parts, stopping_strategy="all_exhausted")["x"]
    assert list(mixed(own, Mix.INTERLEAVE_OVER, (), 0)) == list(over)


def test_a_row_that_comes_again_has_an_id_of_its_own(tmp_path: Path) -> None:
    data = FilesData(path=sources(tmp_path, 1, 3), mix=Mix.INTERLEAVE_OVER, held_out=0)
    ids = [row.id for row in data.conversations(Split.TRAIN)]
    assert ids == ["a-1", "b-1", "a-1~2", "b-2", "a-1~3", "b-3"]


def test_files_of_one_name_have_ids_of_their_own(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    data = FilesData(path=(str(tmp_path / "x/a.jsonl"), str(tmp_path / "y/a.jsonl")), held_out=0)
    assert [row.id for row in data.conversations(Split.TRAIN)] == ["a-1", "a.2-1"]


# ----------------------------------------------------------------------------- how many


def test_fractions_of_each_source_are_chosen_by_seed_and_above_1_come_again(tmp_path: Path) -> None:
    paths = sources(tmp_path, 100, 10)
    rows = read(paths, fractions=(0.2, 2.5))
    assert Counter(text[0] for text in rows) == {"a": 20, "b": 25}
    assert len(set(rows)) == 30
    assert rows == read(paths, fractions=(0.2, 2.5))
    assert rows != read(paths, fractions=(0.2, 2.5), seed=1)
    assert rows[:20] == sorted(rows[:20], key=lambda text: int(text[1:]))  # in their own order


def test_only_the_first_rows_of_each_source_are_taken(tmp_path: Path) -> None:
    assert read(sources(tmp_path, 3, 1, 5), max_rows=2) == ["a0", "a1", "b0", "c0", "c1"]


# ----------------------------------------------------------------------------- held out


@pytest.mark.parametrize(("held_out", "count"), [(2, 2), (0.3, 3), (0.05, 0), (1, 1)])
def test_a_number_or_a_share_of_each_source_is_held_out_and_never_trained_on(
    tmp_path: Path, held_out: float, count: int
) -> None:
    paths = sources(tmp_path, 10, 10)
    for held_out_from in HeldOutFrom:
        settings = {"held_out": held_out, "held_out_from": held_out_from, "fractions": (3.0, 1.0)}
        train, out = read(paths, **settings), read(paths, Split.HELD_OUT, **settings)
        assert Counter(text[0] for text in out) == Counter({"a": count, "b": count} if count else {})
        assert not set(train) & set(out)
        assert len(train) == 4 * (10 - count)
    assert read(paths, Split.HELD_OUT, held_out=2) == ["a8", "a9", "b8", "b9"]


def test_rows_held_out_at_random_depend_on_the_seed_alone(tmp_path: Path) -> None:
    paths = sources(tmp_path, 50)
    out = [read(paths, Split.HELD_OUT, held_out=5, held_out_from=HeldOutFrom.RANDOM, seed=seed) for seed in (0, 0, 1)]
    assert out[0] == out[1] != out[2]


def test_a_file_of_its_own_may_be_held_out(tmp_path: Path) -> None:
    train, held_out = sources(tmp_path, 3, 2)
    assert read((train,), held_out_path=(held_out,), held_out=1) == ["a0", "a1", "a2"]
    assert read((train,), Split.HELD_OUT, held_out_path=(held_out,), held_out=1) == ["b0", "b1"]


def test_holding_out_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: 3 rows, and data\.held_out is 3: none are left"):
        read(sources(tmp_path, 3), held_out=3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"held_out": -1}, "held_out is -1"),
        ({"held_out": 2.5}, "held_out is 2.5"),
        ({"max_rows": -1}, "max_rows is -1"),
        ({"weights": (1.0,), "mix": Mix.INTERLEAVE_OVER}, "weights has 1 numbers, and there are 2 sources"),
        ({"weights": (1.0, 0.0), "mix": Mix.INTERLEAVE_OVER}, "each must be above 0"),
        ({"weights": (1.0, 2.0)}, "weights are for interleaving"),
        ({"fractions": (1.0, 2.0), "streaming": True}, "of a stream at most 1"),
        ({"held_out_from": HeldOutFrom.RANDOM, "streaming": True}, "of a stream the first rows are held out"),
        ({"max_bad_share": 1.0}, "max_bad_share is 1.0"),
        ({"path": ()}, "path is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FilesData(**({"path": ("a.jsonl", "b.jsonl")} | settings))


# ----------------------------------------------------------------------------- a stream's buffer


def test_a_buffer_shuffles_by_its_key_and_loses_nothing() -> None:
    rows = list(range(1000))
    first, again, other = (list(shuffled(iter(rows), 50, key)) for key in ("0", "0", "1"))
    assert first == again != other
    assert sorted(first) == rows
    assert first != rows
    assert all(row <= place + 50 for place, row in enumerate(first))  # no row before it is in the buffer
    assert list(shuffled(iter(rows), 1, "0")) == rows
