"""What a terminal shows of a run: a pure function from one moment of it to lines that fit the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.curves import plot, sparkline
from engine.history import History
from workers.records import Metrics

RECENT = 10
"""Steps behind a mean."""
PLOT_ROWS = 7
FIGURES_WIDTH = 19
NOT_PHASES = ("time/step_s", "time/start")
"""Times that are no part of a step."""
TREND_WIDTH = 12
"""Of the small curve beside a figure, where there is room for it."""
ROOMY, NARROW = 76, 40
"""Columns from which there are small curves, and below which there is one line."""
LOW, MIDDLE, HIGH = "#d9480f", "#e8820c", "#f5b301"
"""The colours of a curve, from its lowest value to its highest."""
QUIET, STRONG, BAR = "dim", "bold", "#e8820c"
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

CURVES = (("reward", "reward/mean"), ("loss", "loss"))
"""The first that a run has is drawn large."""
FIGURES = (
    ("held out", "held_out/sampled", ".3f"),
    ("greedy", "held_out/greedy", ".3f"),
    ("held-out nll", "held_out/nll", ".4f"),
    ("kl", "kl", ".4f"),
    ("entropy", "entropy", ".3f"),
    ("length", "response_length/mean", ".1f"),
    ("truncated", "response_length/truncated_share", ".1%"),
    ("log-prob gap", "logprob_gap_max", ".0e"),
    ("tokens/s", "tokens_per_s", ",.0f"),
    ("grad norm", "gradient_norm", ".2f"),
)
"""The last value of each, where the run has it; the first ones stay where there is little room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One moment of a run.

    Example:
        Shown(name="grpo-nano-arithmetic", steps=50, elapsed_s=72.0, since_step_s=0.3, doing="generate", doing_s=0.3,
              done=History.of([(1, {"reward/mean": 0.31, "time/step_s": 1.4, "time/generate_s": 0.9})]),
              held_out=History())
    """

    name: str
    steps: int
    """Of the whole run."""
    elapsed_s: float
    """Since the process started."""
    since_step_s: float
    """Since the last finished step, or since the first one began."""
    doing: str
    doing_s: float
    done: History
    """Every finished step."""
    held_out: History
    """The results on held-out rows."""

    @property
    def step(self) -> int:
        """Steps done."""
        return self.done.last_step

    @property
    def newest(self) -> Metrics:
        """Of the last step that is done."""
        return self.done.newest(1)[0]

    @property
    def left_s(self) -> float:
        """Until the last step's end, at the mean pace of the recent steps; NaN before there is one."""
        pace_s = mean_of_recent(self.done, "time/step_s")
        ahead = self.steps - self.step
        return max(ahead - 1, 0) * pace_s + (max(pace_s - self.since_step_s, 0.0) if ahead else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveView:
    """`Shown` as a rich renderable that takes what room there is, and no more."""

    shown: Shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield draw(self.shown, width=options.max_width, height=console.height)


def draw(shown: Shown, *, width: int, height: int) -> RenderableType:
    """At most `width` columns and `height` - 2 lines, so that what was said before stays in sight."""
    if not len(shown.done):
        return _ticker(shown)
    inner, room = width - 4, height - 4  # without the frame, and two lines of the terminal
    if inner < NARROW or room < 2:
        return _one_line(shown)
    figures, phases = _figures(shown, inner), _phases(shown, inner)
    parts: list[RenderableType] = [_progress(shown, inner)]
    plot_rows = min(PLOT_ROWS, room - 4)
    if plot_rows >= 2:
        # The curve's own title and axis are two more rows; figures that find no room beside it are left out.
        body = _side_by_side(_curve(shown, inner, plot_rows), figures[: plot_rows + 2])
        parts += [Text(), body]
        room -= plot_rows + 4
        if room > len(phases):
            parts += [Text(), *phases]
    return Panel(
        Group(*parts),
        title=Text(shown.name, style=STRONG),
        title_align="left",
        subtitle=Text(shown.doing + (f", {shown.doing_s:.0f} s" if shown.doing_s >= 1 else ""), style=QUIET),
        subtitle_align="left",
        border_style=QUIET,
        width=width,
    )


def mean_of_recent(done: History, name: str) -> float:
    """Over those of the last few rows that have it; NaN when none has."""
    values = [row[name] for row in done.newest(RECENT) if name in row and math.isfinite(row[name])]
    return float(np.mean(values)) if values else math.nan


def clock(seconds: float) -> str:
    """
    >>> clock(72), clock(3725), clock(float("nan"))
    ('1:12', '1:02:05', '-:--')
    """
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# ---------------------------------------------------------------------------- the parts


def _ticker(shown: Shown) -> Text:
    """Before the first step is done: what is going on, and for how long."""
    frame = SPINNER[int(shown.doing_s * 8) % len(SPINNER)]
    return Text(f"{frame} {shown.doing}  {clock(shown.doing_s)}", overflow="ellipsis", no_wrap=True)


def _one_line(shown: Shown) -> Text:
    label, name = _large(shown)
    told = f"step {shown.step}/{shown.steps}  {label} {_value(shown.newest, name, '.3f')}  {clock(shown.left_s)} left"
    return Text(f"{told}  {shown.doing}", overflow="ellipsis", no_wrap=True)


def _progress(shown: Shown, width: int) -> RenderableType:
    before = f"step {shown.step}/{shown.steps}"
    after = f"{shown.step / shown.steps:4.0%}  {clock(shown.elapsed_s)} elapsed, {clock(shown.left_s)} left"
    line = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(
        total=shown.steps,
        completed=shown.step,
        width=max(width - len(before) - len(after) - 4, 4),
        complete_style=BAR,
        finished_style=HIGH,
    )
    line.add_row(Text(before, style=STRONG, no_wrap=True), bar, Text(after, no_wrap=True))
    return line


def _curve(shown: Shown, width: int, rows: int) -> list[Text]:
    """The large curve with its title, its scale and its steps: `rows` + 2 lines."""
    label, name = _large(shown)
    seen = shown.done.values(name)
    steps, values = shown.done.steps(name)[np.isfinite(seen)], seen[np.isfinite(seen)]
    plot_width = width - FIGURES_WIDTH - _trend_width(width) - 3
    title = Text.assemble((label, STRONG), f" {_value(shown.newest, name, '.3f')}")
    if not len(values):
        return [title]
    low, high = values.min(), values.max()
    scale = [f"{high:.3f}", *[""] * (rows - 2), f"{low:.3f}"]
    margin = max(len(text) for text in scale)
    plotted = plot(values.tolist(), width=plot_width - margin - 2, rows=rows)
    lines = [
        Text.assemble((f"{text:>{margin}} ", QUIET), ("┤" if text else "│", QUIET), (line, colour))
        for text, line, colour in zip(scale, plotted, _colours(rows), strict=True)
    ]
    first, last = f"step {steps[0]:.0f}", f"{steps[-1]:.0f}"
    numbers = first + last.rjust(max(plot_width - margin - 2 - len(first), len(last) + 1))
    return [title, *lines, Text(" " * (margin + 2) + numbers, style=QUIET)]


def _figures(shown: Shown, width: int) -> list[Text]:
    """One line for each figure: its name, its last value, and, in a wide terminal, how it came there."""
    lines = []
    for label, name, form in FIGURES:
        values = (shown.held_out if name.startswith("held_out/") else shown.done).values(name)
        if len(values):
            value = format(values[-1], form)
            line = Text.assemble((f"{label:<12}", QUIET), (f"{value:>{FIGURES_WIDTH - 12}}", STRONG))
            if _trend_width(width) and len(values) > 1:
                line.append(" " + sparkline(values.tolist(), width=TREND_WIDTH), style=BAR)
            lines.append(line)
    return lines


def _phases(shown: Shown, width: int) -> list[Text]:
    """A bar for each phase of a step: its share of the step's time, over the recent steps."""
    step_s = mean_of_recent(shown.done, "time/step_s")
    names = [name for name in shown.newest if name.startswith("time/") and not name.startswith(NOT_PHASES)]
    longest = max((len(_phase(name)) for name in names), default=0)
    room = width - longest - 16
    lines = []
    for name in names:
        seconds = mean_of_recent(shown.done, name)
        share = min(seconds / step_s, 1.0) if step_s > 0 and math.isfinite(seconds) else 0.0
        bar = "━" * round(share * room)
        told = f" {seconds:7.2f} s {share:4.0%}"
        lines.append(Text.assemble((f"{_phase(name):<{longest}} ", QUIET), (f"{bar:<{room}}", BAR), told))
    return lines


# ---------------------------------------------------------------------------- small things


def _side_by_side(left: Sequence[Text], right: Sequence[Text]) -> RenderableType:
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    for one, other in zip_longest(left, right, fillvalue=Text()):
        grid.add_row(one, other)
    return grid


def _large(shown: Shown) -> tuple[str, str]:
    """The label and the metric of the large curve."""
    names = shown.newest.keys()
    return next((curve for curve in CURVES if curve[1] in names), CURVES[-1])


def _colours(rows: int) -> list[str]:
    """From the top row down."""
    return [(HIGH, MIDDLE, LOW)[min(3 * row // rows, 2)] for row in range(rows)]


def _trend_width(width: int) -> int:
    return TREND_WIDTH + 1 if width >= ROOMY else 0


def _phase(name: str) -> str:
    return name.removeprefix("time/").removesuffix("_s")


def _value(row: Metrics, name: str, form: str) -> str:
    return format(row[name], form) if name in row else "-"
