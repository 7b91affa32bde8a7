"""The end of a run: the same facts as data, as lines and as tables."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from engine.origin import Origin
from engine.summary import Summary, summarize
from rewards.score import Failure, FailureKind, Score
from workers.records import Message, Prompt, Rollout, ScoredRollout, Span, Stop

ROWS = [
    {"step": 0, "held_out/sampled": 0.25, "held_out/greedy": 0.0},
    {"step": 1, "time/step_s": 2.0, "tokens": 100.0, "logprob_gap_max": 1e-5},
    {"step": 2, "time/step_s": 3.0, "tokens": 200.0, "logprob_gap_max": 3e-5},
    {"step": 2, "held_out/sampled": 0.75, "held_out/greedy": 1.0},
]

ORIGIN = Origin(command="python -m engine.main run.steps=2", git="abc1234", config="00ff", seed=7)


def answered(text: str, judgement: Score | Failure) -> ScoredRollout:
    asked = (Message(role="user", content="1+1="),)
    prompt = Prompt(id="p", messages=asked, token_ids=(1,), answer="2", row={}, from_text=True)
    span = Span(start=0, end=1, sampled=True, version=2)
    tokens = {"token_ids": np.array([1]), "logprobs": np.array([0.0]), "spans": (span,), "stop": Stop.END}
    return ScoredRollout(rollout=Rollout(prompt=prompt, draw=0, sample=0, text=text, **tokens), judgement=judgement)


@pytest.fixture
def summary() -> Summary:
    responses = (
        answered("2", Score(total=1.0, parts={"exact": 1.0})),
        answered("x" * 400 + "\ny", Failure(kind=FailureKind.TIMEOUT, reason="no answer within 10 s")),
    )
    places = {"export": Path("runs/mine/export"), "folder": Path("runs/mine")}
    return summarize(ROWS, responses, wall_s=9.876, origin=ORIGIN, **places)


def test_the_summary_as_data_holds_it_all(summary: Summary) -> None:
    held = json.loads(summary.to_json())
    assert held["steps"] == 2 and held["tokens_per_s"] == 300 / 5 and held["wall_s"] == 9.88
    assert (held["held_out_before"], held["held_out_after"]) == (0.25, 0.75)
    assert (held["held_out_greedy_before"], held["held_out_greedy_after"]) == (0.0, 1.0)
    assert held["logprob_gap_max"] == 3e-5 and held["export"] == "runs/mine/export"
    assert held["origin"] == {"command": ORIGIN.command, "git": "abc1234", "config": "00ff", "seed": 7}
    assert held["answers"][0] == {"asked": "1+1=", "answered": "2", "verdict": "score 1"}
    assert held["answers"][1]["answered"] == "x" * 400 + "\ny" and held["answers"][1]["verdict"] == "timeout"


def test_in_a_pipe_it_is_one_line_each(summary: Summary) -> None:
    lines = summary.lines()
    assert lines[0] == "asked '1+1=': answered '2' (score 1)"
    assert "[... 242 characters left out ...]" in lines[1]
    assert lines[2:] == (
        "held out, sampled: 0.250 before, 0.750 after",
        "held out, greedy: 0.000 before, 1.000 after",
        "the model is in runs/mine/export, everything else in runs/mine",
    )
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize("width", [40, 80])
def test_on_a_terminal_the_tables_fit(summary: Summary, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(summary.tables())
    lines = console.file.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    assert any(line.split() == ["sampled", "0.250", "0.750"] for line in lines)
    assert any("runs/mine/export" in line for line in lines)


def test_alarms_are_told_with_their_first_step_everywhere() -> None:
    alarm = {"alarms/length": 1.0}
    rows = [ROWS[1], ROWS[2] | alarm, {"step": 3, "time/step_s": 1.0, "tokens": 1.0} | alarm]
    told = summarize(rows, (), wall_s=1.0, export=Path("e"), folder=Path("f"), origin=ORIGIN)
    assert json.loads(told.to_json())["alarms"] == [{"name": "length", "first_step": 2, "steps": 2}]
    assert "alarm length: in 2 steps, first in step 2" in told.lines()
    console = Console(file=io.StringIO(), width=80)
    console.print(told.tables())
    assert any(line.split() == ["length", "2", "2"] for line in console.file.getvalue().splitlines())


def test_a_run_without_a_single_step_has_a_summary_too() -> None:
    nothing = summarize([], (), wall_s=1.0, export=Path("e"), folder=Path("f"), origin=ORIGIN)
    assert json.loads(nothing.to_json())["steps"] == 0 and len(nothing.lines()) == 1
