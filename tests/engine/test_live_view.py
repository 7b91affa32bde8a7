"""The live view says what the history says, fits every terminal, and survives numbers that are none."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from engine.curves import plot, sparkline
from engine.history import History
from engine.live_view import LiveView, Shown

NAN = float("nan")


def step(number: int, **changes: float) -> dict[str, float]:
    online = {"reward/mean": 0.02 * number, "kl": 0.001, "entropy": 1.2, "response_length/mean": 3.25}
    more = {"response_length/truncated_share": 0.125, "logprob_gap_max": 2e-5, "tokens_per_s": 12345.0}
    times = {"time/step_s": 2.0, "time/generate_s": 1.0, "time/credit_s": 0.25, "time/update_s": 0.5}
    times |= {"time/publish_s": 0.1}
    return {"step": number, **online, **more, **times, **changes}


def seen(*rows: dict[str, float]) -> History:
    return History.of((int(row["step"]), row) for row in rows)


def run(*done: dict[str, float], **changes: object) -> Shown:
    shown = Shown(
        name="grpo-nano-arithmetic",
        steps=40,
        elapsed_s=72.0,
        since_step_s=0.5,
        doing="step 3/40: learn",
        doing_s=1.0,
        done=seen(*done),
        held_out=seen({"step": 0, "held_out/sampled": 0.351}),
    )
    return replace(shown, **changes)


def drawn(shown: Shown, *, width: int = 80, height: int = 24, **settings: object) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, **settings)
    console.print(LiveView(shown=shown))
    return console.file.getvalue()


def lines_of(shown: Shown, *, width: int = 80, height: int = 24) -> list[str]:
    return drawn(shown, width=width, height=height, color_system=None).splitlines()


def heights_of(plotted: list[str]) -> list[int]:
    """In eighths of a character; Unicode numbers the blocks from one eighth (2581) to the whole (2588)."""
    columns = [
        [ord(line[column]) - 0x2580 for line in plotted if line[column] != " "] for column in range(len(plotted[0]))
    ]
    assert all(block == 8 for column in columns for block in column[1:])  # below the top it is filled
    return [sum(column) for column in columns]


def test_the_time_left_is_the_remaining_steps_at_the_mean_pace() -> None:
    three = run(*(step(number, **{"time/step_s": seconds}) for number, seconds in ((1, 1.0), (2, 2.0), (3, 6.0))))
    assert three.left_s == pytest.approx(36 * 3.0 + (3.0 - 0.5))
    assert "1:12 elapsed, 1:50 left" in lines_of(three)[1]
    assert replace(three, since_step_s=100.0).left_s == pytest.approx(36 * 3.0)
    assert replace(three, steps=3).left_s == 0.0


def test_only_the_recent_steps_set_the_pace() -> None:
    slow_start = run(*(step(number, **{"time/step_s": 60.0 if number < 11 else 1.0}) for number in range(1, 21)))
    assert slow_start.left_s == pytest.approx(19 * 1.0 + 0.5)


def test_the_curve_rises_when_values_rise_and_falls_when_they_fall() -> None:
    values = [math.sqrt(number) for number in range(30)]
    for width in (10, 30, 70):
        heights = heights_of(plot(values, width=width, rows=5))
        assert heights == sorted(heights) and heights[0] == 1 and heights[-1] == 40
        assert heights_of(plot(values[::-1], width=width, rows=5)) == heights[::-1]


def test_a_curve_is_true_to_scale() -> None:
    assert heights_of(plot([0.0, 15.0, 30.0, 7.0], width=4, rows=2)) == [1, 1 + round(7.5), 16, 1 + round(3.5)]


def test_a_small_curve_is_the_means_of_its_stretches() -> None:
    assert sparkline([0.0, 0.0, 7.0, 7.0], width=2) == "▁▇"
    assert sparkline([3.0, 3.0], width=8) == "▁▁"
    assert sparkline([NAN], width=8) == ""


@pytest.mark.parametrize("width", [20, 39, 46, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [4, 8, 11, 16, 24, 60])
@pytest.mark.parametrize("steps", [0, 1, 2, 500])
def test_nothing_is_wider_or_higher_than_the_terminal(width: int, height: int, steps: int) -> None:
    long = {"name": "n" * 90, "doing": "starting " + "policy 0, " * 20, "steps": 1000}
    shown = lines_of(run(*(step(number + 1) for number in range(steps)), **long), width=width, height=height)
    assert max(len(line) for line in shown) <= width
    assert 1 <= len(shown) <= height - 2


def test_every_figure_is_shown_at_its_last_value() -> None:
    text = "\n".join(lines_of(run(step(1), step(2, **{"kl": 0.0456}))))
    for label, value in {
        "held out": "0.351", "kl": "0.0456", "entropy": "1.200", "length": "3.2", "truncated": "12.5%",
        "log-prob gap": "2e-05", "tokens/s": "12,345",
    }.items():  # fmt: skip
        assert any(label in line and value in line for line in text.splitlines()), label
    assert "reward 0.040" in text and "step 2/40" in text and "grpo-nano-arithmetic" in text


def test_a_phase_has_its_share_of_the_step_as_a_bar() -> None:
    shown = {line.split()[1]: line for line in lines_of(run(step(1), step(2))) if "━" in line and " s " in line}
    bars = {name: line.count("━") for name, line in shown.items()}
    assert list(bars) == ["generate", "credit", "update", "publish"]
    assert bars["generate"] == 2 * bars["update"] and bars["update"] > bars["credit"] > bars["publish"] > 0
    assert "1.00 s" in shown["generate"] and "50%" in shown["generate"]


def test_numbers_that_are_none_are_told_and_not_drawn() -> None:
    bad = step(2, **{"reward/mean": NAN, "kl": math.inf, "time/update_s": NAN})
    text = "\n".join(lines_of(run(step(1), bad)))
    assert "reward nan" in text and "inf" in text
    alone = run({name: NAN for name in step(1)} | {"step": 1})
    assert "reward nan" in "\n".join(lines_of(alone)) and "-:-- left" in lines_of(alone)[1]


def test_an_offline_stage_draws_its_loss() -> None:
    rows = [
        {"step": n, "loss": 3.0 / n, "tokens_per_s": 10.0, "time/step_s": 1.0, "time/update_s": 1.0} for n in (1, 2)
    ]
    text = "\n".join(lines_of(run(*rows, held_out=seen({"step": 0, "held_out/nll": 2.5}))))
    assert "loss 1.500" in text and "2.5000" in text and "reward" not in text


def test_before_the_first_step_a_line_says_what_is_going_on_and_for_how_long() -> None:
    [line] = lines_of(run(doing="starting Ray", doing_s=72.0))
    assert "starting Ray" in line and "1:12" in line


def test_without_colour_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[38" in drawn(run(step(1)), color_system="truecolor")
    assert "\x1b[3" not in drawn(run(step(1)), color_system="truecolor", no_color=True)
