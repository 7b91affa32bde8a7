"""What is said of a run's data before Ray starts, and a check that does nothing else."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from engine.main import run
from workers.stopped import RunStopped

TURNS = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]


@pytest.fixture(autouse=True)
def own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own


def chats(tmp_path: Path, *, bad: int) -> str:
    rows = [{"messages": TURNS}] * 40 + [{"mesages": TURNS}] * bad
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return f"data.path={tmp_path}/rows.jsonl"


def test_a_check_tells_every_bad_row_and_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["algo=sft", "data=files", chats(tmp_path, bad=25), "data.check=true", f"run.folder={tmp_path}/runs"]
    assert run([*typed, "data.bad_rows=skip"]) == 2
    said = capsys.readouterr().err
    assert [f"rows.jsonl:{n}: no column 'messages'; the nearest is 'mesages'" in said for n in range(41, 66)] == [
        True
    ] * 25
    assert "25 of 65 rows are bad: 25 x messages: it is missing" in said
    assert not (tmp_path / "runs").exists()


def test_a_check_of_good_rows_says_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["algo=sft", "data=files", chats(tmp_path, bad=0), "data.check=true", f"run.folder={tmp_path}/runs"]
    assert run(typed) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/rows.jsonl: 40 conversations as openai (messages: 'messages')" in said
    assert "no bad rows; 38 to train on, 2 held out" in said
    assert "Ray" not in said
    assert not (tmp_path / "runs").exists()


def test_a_check_tries_the_reward_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1+1=", "answer": "2", "level": 3}) + "\n")
    (tmp_path / "mine.py").write_text("def odd(response, answer, **row):\n    return row['levle']\n")
    typed = ["data=files", f"data.path={tmp_path}/rows.jsonl", "data.check=true"]
    assert run([*typed, "reward.function=rewards.number:exact"]) == 0
    assert "1 questions as rows (prompt: 'prompt', answer: 'answer')" in capsys.readouterr().out
    assert run([*typed, f"reward.function={tmp_path}/mine.py:odd"]) == 2
    assert "levle" in capsys.readouterr().err


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends where Ray would start."""
    from workers import team

    def start_workers(*_: object, **__: object) -> None:
        raise RunStopped("here Ray would start")

    monkeypatch.setattr(team, "start_workers", start_workers)


def test_a_run_says_what_it_took_the_data_for_and_lists_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_workers: None
) -> None:
    typed = ["algo=sft", "data=files", chats(tmp_path, bad=3), f"run.folder={tmp_path}", "run.name=mine"]
    assert run([*typed, "data.bad_rows=skip", "run.steps=1", "run.tensorboard=false"]) == 1
    said = capsys.readouterr().out
    assert "rows.jsonl: 40 conversations as openai (messages: 'messages')" in said
    assert "left out 3 of 43 rows (7.0%): 3 x messages: it is missing" in said
    listed = [json.loads(line) for line in (tmp_path / "mine/skipped_rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in listed] == ["rows-41", "rows-42", "rows-43"]


def test_data_sets_of_the_house_have_nothing_to_account_for(tmp_path: Path, no_workers: None) -> None:
    assert run([f"run.folder={tmp_path}", "run.name=mine", "run.steps=1", "run.tensorboard=false"]) == 1
    assert not (tmp_path / "mine/skipped_rows.jsonl").exists()


def test_of_a_stream_the_first_rows_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["algo=sft", "data=files", "data.check=true", "data.streaming=true", f"run.folder={tmp_path}/runs"]
    assert run([*typed, chats(tmp_path, bad=0)]) == 0
    assert "rows.jsonl: a stream of conversations as openai" in (said := capsys.readouterr().out)
    assert "no bad rows among the first 40" in said
    assert run([*typed, chats(tmp_path, bad=3)]) == 2
    assert "3 of 43 rows are bad" in capsys.readouterr().err


def test_gsm8k_s_rows_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"{n}+1=", "answer": f"#### {n + 1}"} for n in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    typed = ["data=gsm8k", f"data.path={path}", "data.held_out=2", "data.check=true", "rollout.max_response_tokens=8"]
    assert run(typed) == 0
    assert f"{path}: 6 rows, and 2 held out" in capsys.readouterr().out
    path.write_text(path.read_text() + '{"question": "1+1=", "answer": "2"}\n' * 25)
    assert run(typed) == 2
    assert capsys.readouterr().err.count("no answer after ####.") >= 23
