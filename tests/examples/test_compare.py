"""The comparison of all algorithms: its controls say nothing about a response, and its rows outlive a stop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from runs import REPOSITORY

from engine.compose import options_in
from engine.config import CONF, load_config
from examples.algorithms import clipping, compare, shuffled
from examples.algorithms.compare import ALGORITHMS, HERE, MARKS
from examples.algorithms.runs import Finished, Run, read_json, write_json
from examples.algorithms.shuffled import Deck, Shuffled

NOT_COMPARED = {"pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "grpo_verl", "grpo_easyr1", "grpo_trl"}
"""Objectives that sample nothing, and presets of one that is compared."""


# ----------------------------------------------------------------------------- the controls


def dealt(scores: np.ndarray) -> np.ndarray:
    """For groups one after another."""
    plain = {"length_B": np.ones(scores.shape[1]), "truncated_B": np.zeros(scores.shape[1], dtype=bool)}
    return np.stack([Shuffled().rewards(group, **plain, max_length=8) for group in scores])


@pytest.fixture
def deck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffled, "DECK", Deck(size=256))


def test_what_is_dealt_says_nothing_about_the_response(deck: None) -> None:
    """20 000 responses in groups of eight, one in three right: the right ones are dealt as much as the others, and as
    much as they earned. Rewards that stay in the group fail this by 1/8."""
    scores = (np.random.default_rng(1).random((2500, 8)) < 1 / 3).astype(np.float64)
    found = dealt(scores)
    # Standard error of the difference: 0.007.
    assert abs(found[scores == 1].mean() - found[scores == 0].mean()) < 0.025
    assert found.mean() == pytest.approx(scores.mean(), abs=0.015)
    assert set(found.flat) == {0.0, 1.0}


def test_who_was_not_judged_stays_so_and_a_run_that_is_repeated_deals_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.array([[1.0, 0.0, np.nan, 0.5], [np.nan, 0.25, 1.0, 0.0]] * 20)
    found = []
    for _ in range(2):
        monkeypatch.setattr(shuffled, "DECK", Deck(size=16))
        found.append(dealt(scores))
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(np.isnan(found[0]), np.isnan(scores))


def test_every_shipped_algorithm_is_compared_with_itself_on_shuffled_rewards() -> None:
    assert set(ALGORITHMS) == set(options_in(CONF)["algo"]) - NOT_COMPARED
    for name in ALGORITHMS:
        own, control = (load_config(run.typed) for run in compare.pair(name, compare.parsed(["--steps", "4"])))
        assert type(control.algo).__mro__[1] is type(own.algo)
        assert isinstance(control.algo.shaping, Shuffled)
        settings = {one: getattr(own.algo.shaping, one) for one in own.algo.shaping.__dataclass_fields__}
        assert replace(control.algo, shaping=Shuffled(**settings)) == control.algo
        assert own.run.steps == control.run.steps == 4
        assert own.train == control.train


# ----------------------------------------------------------------------------- the rows


def finished(run: Run) -> Finished:
    """As if a run had gone: its reward rises, a control's does not."""
    final = 0.35 if "control" in run.name else 0.9
    steps = [
        {
            "step": step,
            "time/step_s": 1.0,
            "reward/mean": final * step / 10,
            "reward/greedy_responses": 32.0,
            "reward/uniform_groups_share": 0.0,
            "critic/value_loss": 1 / step,
            "critic/explained_variance": step / 10,
            "entropy": 1 / step,
            "clip_low": 0.01,
            "clip_high": 0.02,
        }
        for step in range(1, 11)
    ]
    held_out = [
        {"step": step, "held_out/sampled": at, "held_out/standard_error": 0.02, "held_out/greedy": at}
        for step, at in ((0, 0.35), (10, final))
    ]
    figures = {"held_out_before": 0.35, "held_out_after": final}
    figures |= {f"held_out_greedy_{when}": 0.5 for when in ("before", "after")}
    figures |= {f"held_out_standard_error_{when}": 0.02 for when in ("before", "after")}
    origin = {"command": "python -m engine.main", "git": "abc", "config": "def", "seed": 0}
    return Finished(summary=figures | {"steps": 10, "wall_s": 60.0, "origin": origin}, steps=steps, held_out=held_out)


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """The command with runs that take no time: its results."""

    def told(*argv: str, do: Callable[[Run], Finished] = finished) -> Path:
        monkeypatch.setattr(Run, "do", do)
        compare.main([*argv, "--results", str(tmp_path / "results.json"), "--folder", str(tmp_path)])
        return tmp_path / "results.json"

    return told


def test_a_stop_keeps_the_rows_that_are_done_and_a_row_is_replaced_alone(go: Callable[..., Path]) -> None:
    def stopped(run: Run) -> Finished:
        if run.name == "ppo":
            raise KeyboardInterrupt
        return finished(run)

    with pytest.raises(KeyboardInterrupt):
        go("--algorithms", "remax,ppo", do=stopped)
    results = go("--algorithms", "dapo")
    rows = read_json(results)
    assert list(rows) == ["dapo", "remax"]  # in the order of the table, not of the runs

    def worse(run: Run) -> Finished:
        own = finished(run)
        return replace(own, summary={**own.summary, "held_out_after": 0.4})

    again = read_json(go("--algorithms", "dapo", "--steps", "10", do=worse))
    assert (again["dapo"]["final"], again["remax"]) == (0.4, rows["remax"])
    # What was lost, by a kill or by hand, is still with the runs.
    results.unlink()
    assert read_json(go("--draw")) == again
    assert again["dapo"]["again"] == "python examples/algorithms/compare.py --algorithms dapo run.steps=10"


def test_a_row_says_what_the_runs_said(go: Callable[..., Path]) -> None:
    row = read_json(go("--algorithms", "ppo"))["ppo"]
    assert {name: row[name] for name in ("start", "final", "control_final", "steps")} == {
        "start": 0.35,
        "final": 0.9,
        "control_final": 0.35,
        "steps": 10,
    }
    assert row["run"]["origin"] == {"command": "python -m engine.main", "git": "abc", "config": "def", "seed": 0}
    assert row["run"]["rewards"][0] == pytest.approx(0.09)
    assert row["run"]["held_out"][-1] == {"step": 10, "sampled": 0.9, "standard_error": 0.02, "greedy": 0.9}
    loss = row["run"]["figures"]["critic/value_loss"]
    assert (loss["first_fifth"], loss["last_fifth"]) == (pytest.approx(0.75), pytest.approx((1 / 9 + 1 / 10) / 2))


def test_the_picture_has_a_curve_and_a_control_for_each_row(go: Callable[..., Path]) -> None:
    results = go("--algorithms", "grpo,ppo,dapo")
    drawing = ElementTree.fromstring(results.with_name("curves.svg").read_text())
    svg = "{http://www.w3.org/2000/svg}"
    panels = drawing.findall(f"{svg}g")
    assert [panel.findall(f"{svg}text")[-1].text for panel in panels] == ["grpo", "dapo", "ppo"]
    for panel in panels:
        control, own = (line.get("points").split() for line in panel.findall(f"{svg}polyline"))
        assert len(control) == len(own) == 10
        assert float(own[-1].split(",")[1]) < float(control[-1].split(",")[1])  # higher up


def test_the_page_is_written_between_its_marks_and_nowhere_else(go: Callable[..., Path]) -> None:
    rows = read_json(go("--algorithms", "remax,dapo,ppo"))
    page = (HERE / "README.md").read_text()
    assert [page.count(mark) for mark in MARKS] == [1, 1]
    written = compare.with_section(page, compare.markdown(rows))
    assert compare.with_section(written, compare.markdown(rows)) == written
    assert written.partition(MARKS[0])[0] == page.partition(MARKS[0])[0]
    assert written.partition(MARKS[1])[2] == page.partition(MARKS[1])[2]
    assert "| remax | 0.350 +- 0.020 | 0.900 +- 0.020 | 0.500 | 1.00 | 0.350 +- 0.020 | 1.0 |" in written
    assert "ReMax: 32 to 32 greedy responses in each step." in written
    assert "DAPO: at most 0.00 of a batch's groups" in written
    assert "from 0.15 to 0.95" in written


def test_the_signs_of_all_seeds_are_told(go: Callable[..., Path]) -> None:
    def measured(run: Run) -> Finished:
        own = finished(run)
        more = {"gspo": {"clip_low": 0.5}, "clip_higher": {"entropy": 2.0}}.get(run.name.partition("-")[0], {})
        return replace(own, steps=[step | more for step in own.steps])

    content = read_json(go("--clipping", do=measured))
    assert content["signs"] == {"gspo_clips_more_tokens": [1, 1, 1], "clip_higher_keeps_more_entropy": [1, 1, 1]}
    asked = compare.parsed(["--clipping"])
    for run in compare.planned(asked):
        config = load_config(run.typed)
        assert config.train.updates_per_step == clipping.UPDATES
        assert config.algo.kl_coef == 0


def test_the_critics_figures_are_told(go: Callable[..., Path]) -> None:
    content = read_json(go("--critic"))
    assert content["critic/value_loss by step"][:2] == [1.0, 0.5]
    assert content["critic/explained_variance"]["last_fifth"] == pytest.approx(0.95)
    [run] = compare.planned(compare.parsed(["--critic", "--steps", "7"]))
    config = load_config(run.typed)
    assert (config.algo.needs.critic, config.data.largest, config.run.steps) == (True, 140, 7)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    content = {"a": {"b": [1, {"c": 2.5}], "d": {}, "e": {"f": {"g": [1]}}}, "h": "text"}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content
    assert read_json(tmp_path / "none.json") == {}


def test_a_wrong_row_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.parsed(["--algorithms", "grpo,pop"])
    assert "pop: the rows are grpo, dr_grpo" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    told = ["--algorithms", "rloo", "--steps", "2", "--results", str(results), "--folder", str(tmp_path)]
    small = ["evaluation.prompts=2", "evaluation.samples_per_prompt=1", "rollout.prompts_per_step=2"]
    command = [sys.executable, "examples/algorithms/compare.py", *told, *small]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    row = read_json(results)["rloo"]
    assert row["steps"] == len(row["run"]["rewards"]) == len(row["control"]["rewards"]) == 2
    assert "examples.algorithms.shuffled.ShuffledRLOO" in row["control"]["origin"]["command"]
    assert "rloo" in done.stdout
