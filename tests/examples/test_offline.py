"""What the page of the offline examples says is what the runs' summaries say, and they learned."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples/offline"
ROW = re.compile(r"^\| (sft|dpo), (\w+) \| ([\d.]+) \| \*\*([\d.]+)\*\* \|$", re.MULTILINE)
SUMMARIES = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("sft", "dpo")}


def rows() -> list[tuple[str, str, str, str]]:
    return ROW.findall((FOLDER / "README.md").read_text())


@pytest.mark.parametrize(("name", "figure", "before", "after"), rows())
def test_a_figure_of_the_page_is_the_runs_own(name: str, figure: str, before: str, after: str) -> None:
    for told, moment in ((before, "before"), (after, "after")):
        assert float(told) == pytest.approx(SUMMARIES[name][f"held_out_{figure}_{moment}"], abs=5e-4)


def test_both_learned_what_they_were_shown() -> None:
    assert len(rows()) >= 4
    sft, dpo = SUMMARIES["sft"], SUMMARIES["dpo"]
    assert sft["steps"] == dpo["steps"] == 20
    assert sft["held_out_loss_after"] < sft["held_out_loss_before"] - 0.05
    assert dpo["held_out_loss_before"] == pytest.approx(0.6931, abs=1e-4), "the policy is its own reference"
    assert dpo["held_out_loss_after"] < dpo["held_out_loss_before"]
    assert dpo["held_out_margin_after"] > dpo["held_out_margin_before"] == 0


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_says_which_command_and_code_made_it(name: str) -> None:
    origin = SUMMARIES[name]["origin"]
    assert f"experiment=smollm2_{name}" in origin["command"] and origin["git"] and origin["config"]
    assert "/tmp" not in json.dumps(SUMMARIES[name])
