"""Lessons in order: the same whether a run was stopped or not, from memory or from a stream."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from engine.config import ConfigError, load_config
from engine.data.base import DataError
from engine.tasks import OfflineTask, prepare_offline

ROWS = 40


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    turns = [
        [{"role": "user", "content": f"{n}+1="}, {"role": "assistant", "content": str(n + 1)}] for n in range(ROWS)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return path


def task_of(path: Path, *overrides: str) -> OfflineTask:
    return prepare_offline(load_config(["algo=sft", "data=files", f"data.path={path}", "data.held_out=4", *overrides]))


SOURCES = {"memory": (), "stream": ("data.streaming=true", "data.shuffle_rows=7")}


@pytest.mark.parametrize("source", SOURCES)
def test_every_row_is_learned_once_an_epoch_and_none_that_is_held_out(source: str, rows: Path) -> None:
    task = task_of(rows, *SOURCES[source])
    count = ROWS - 4
    lessons = task.lessons_from(0)
    epochs = [[lesson.id for lesson in lessons.take(count)] for _ in range(2)]
    for epoch in epochs:
        assert set(Counter(epoch).values()) == {1} and len(epoch) == count
        assert not {lesson.id for lesson in task.held_out} & set(epoch)
    assert epochs[0] != epochs[1], "each epoch has its own order"
    assert len(task.held_out) == 4


@pytest.mark.parametrize("source", SOURCES)
def test_who_goes_on_after_a_stop_gets_the_lessons_that_would_have_come(source: str, rows: Path) -> None:
    task = task_of(rows, *SOURCES[source])
    never_stopped, stopped = task.lessons_from(0), task.lessons_from(0)
    first = never_stopped.take(25)
    assert stopped.take(25) == first
    gone_on = task_of(rows, *SOURCES[source]).lessons_from(stopped.next_draw, stopped.lessons_taken)
    assert gone_on.take(30) == never_stopped.take(30)


@pytest.mark.parametrize("taken", [1, 2, 3, 4, 7, 20])
def test_who_goes_on_in_the_middle_of_a_long_row_gets_the_rest_of_it(taken: int, tmp_path: Path) -> None:
    """Each row makes three lessons; a checkpoint may stand after any of them."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n}" * 30}) + "\n" for n in range(1, 9)))
    overrides = ["algo=pt", "data=files", f"data.path={path}", "data.held_out=1", "model.context_length=12"]
    task = prepare_offline(load_config([*overrides, "data.streaming=true", "data.shuffle_rows=3"]))
    whole = task.lessons_from(0).take(30)
    stopped = task.lessons_from(0)
    assert stopped.take(taken) == whole[:taken]
    gone_on = task.lessons_from(stopped.next_draw, stopped.lessons_taken)
    assert gone_on.take(30 - taken) == whole[taken:]
    again = task.lessons_from(gone_on.next_draw, gone_on.lessons_taken)
    assert again.take(5) == gone_on.take(5)


def test_a_stream_of_long_texts_gives_as_many_lessons_as_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n}" * 30}) + "\n" for n in range(1, 9)))
    config = ["algo=pt", "data=files", f"data.path={path}", "data.held_out=1", "model.context_length=12"]
    lessons = prepare_offline(load_config([*config, "data.streaming=true"])).lessons_from(0)
    taken = [len(lessons.take(4)) for _ in range(5)]
    assert taken == [4] * 5
    assert lessons.next_draw < 20, "a row makes three lessons"


def test_what_has_no_end_is_not_counted_or_looked_at_beforehand(rows: Path) -> None:
    stream = ["data=files", f"data.path={rows}", "data.streaming=true"]
    for overrides, told in (
        (["algo=dpo"], "its reference is asked about every row"),
        (["algo=sft", "run.epochs=1"], r"run\.epochs is 1"),
        (["algo=grpo", "reward.function=rewards.number:exact"], "its questions are drawn"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_config([*overrides, *stream])


def test_rows_that_cannot_be_written_are_bad_rows_like_others(rows: Path) -> None:
    long = {"messages": [{"role": "user", "content": "9" * 100}, {"role": "assistant", "content": "1"}]}
    rows.write_text(f"{json.dumps(long)}\n" * 3 + rows.read_text())
    with pytest.raises(DataError) as told:
        task_of(rows, "model.context_length=32")
    assert str(told.value).count("leaves room for 32") == 3, "all of them are told"

    skipping = task_of(rows, "model.context_length=32", "data.bad_rows=skip")
    clean = task_of(rows, "model.context_length=32", "rendering.overlong=drop")
    assert len(skipping.bad.found) == 3
    assert [lesson.examples for lesson in skipping.lessons_from(0).take(50)] == [
        lesson.examples for lesson in clean.lessons_from(0).take(50)
    ]
