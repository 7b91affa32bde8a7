"""The example of a reward of one's own: its documented commands do what its page says."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import load_config
from engine.reward import main
from engine.tasks import prepare_online

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "examples/own_reward/README.md").read_text()
COMMANDS = [line.split() and line.strip() for line in PAGE.splitlines() if line.startswith("    python -m ")]


def test_the_page_s_trial_prints_what_the_page_says() -> None:
    trial, _ = COMMANDS
    done = subprocess.run(
        [sys.executable, *shlex.split(trial)[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *said, took = done.stdout.splitlines()
    assert took.endswith(" ms a response") and len(said) == 4
    assert all(f"    {line}\n" in PAGE for line in said)


def test_the_page_s_run_composes_and_its_reward_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, run = COMMANDS
    task = prepare_online(load_config(shlex.split(run)[3:]))
    told = "reward examples/own_reward/my_reward.py:correct (native): an empty response scores 0, the first answer 1.2"
    assert told in task.remarks


def test_arguments_are_read_as_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(response, answer, *, given):\n    return float(given == eval(response))\n")
    for typed, meant in (("2020-01-01", "'2020-01-01'"), ("0x10", "'0x10'"), ("[1,{a:null}]", "[1, {'a': None}]")):
        assert load_config([f"reward.arguments.given={typed}"]).reward.arguments == {"given": eval(meant)}
        assert main([f"{file}:f", "--response", meant, "--argument", f"given={typed}"]) == 0
        assert "score 1 " in capsys.readouterr().out


def test_what_cannot_be_judged_is_told_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(response, answer, level):\n    return {'a': 1, 'b': level}[response]\n")
    trial = [f"{file}:f", "--response", "a", "--response", "c", "--row", '{"level": 3}']
    assert main(trial) == 1
    out = capsys.readouterr().out
    assert f"{file}:f is called as native\n" in out
    assert "'a': score 1   f 1\n" in out and "'c': no score (exception)" in out and "KeyError: 'c'" in out
    assert main([f"{file}:f", "--response", "b", "--row", '{"level": 3}']) == 0
    assert "score 3" in capsys.readouterr().out
    file.write_text("def f(reward_input):\n    return {'overall': reward_input['response_length']}\n")
    assert main([f"{file}:f", "--response", "b"]) == 0
    assert (
        f"{file}:f is called as easyr1 does it, as its parameters say (--convention names another)"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--row", "level=3"), "--row is 'level=3', which is no JSON"),
        (("--argument", "bonus"), "--argument is 'bonus'; write name=value"),
        (("--argument", "bonus=[1"), "`reward.arguments.bonus=[1` is not an override"),
    ],
)
def test_mistakes_are_explained(more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = f"{ROOT / 'examples/own_reward/my_reward.py'}:correct"
    assert main([spec, "--response", "1", *more]) == 2
    assert said in capsys.readouterr().err
