"""What came out of a run: summary.json for programs, a few lines or small tables for the person."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.origin import Origin
from rewards.score import Score
from workers.records import Metrics, ScoredRollout

MOST_CHARACTERS = 160
"""Of a question or an answer that is told to the person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One held-out figure, at its first and its last measurement."""

    name: str
    before: float
    after: float

    @property
    def key(self) -> str:
        """Its name in summary.json: `held_out` is the sampled accuracy."""
        return "held_out" if self.name == "sampled" else f"held_out_{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One greedy response to a held-out prompt, at the last measurement."""

    asked: str
    answered: str
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmTold:
    """One sign that something goes wrong that the run had."""

    name: str
    first_step: int
    steps: int
    """How many steps had it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A finished run."""

    steps: int
    tokens_per_s: float
    """Over all steps: prompts and responses, per second of the step."""
    wall_s: float
    """Since the command started."""
    comparisons: tuple[Comparison, ...]
    answers: tuple[Answer, ...]
    alarms: tuple[AlarmTold, ...]
    largest_gap: float
    """Between the rollout engine's and the trainer's log-prob of one token; 0 where nothing was sampled."""
    export: Path
    folder: Path
    origin: Origin

    def to_json(self) -> str:
        numbers: dict[str, object] = {"steps": self.steps, "tokens_per_s": self.tokens_per_s}
        for figure in self.comparisons:
            numbers |= {f"{figure.key}_before": figure.before, f"{figure.key}_after": figure.after}
        answers = [{"asked": one.asked, "answered": one.answered, "verdict": one.verdict} for one in self.answers]
        places = {"export": str(self.export), "folder": str(self.folder)}
        rest = {"logprob_gap_max": self.largest_gap, "wall_s": round(self.wall_s, 2), "answers": answers}
        rest |= {"alarms": [asdict(alarm) for alarm in self.alarms]}
        return json.dumps(numbers | places | rest | {"origin": asdict(self.origin)}, indent=1) + "\n"

    def lines(self) -> tuple[str, ...]:
        """For a pipe or a log file."""
        return (
            *(f"asked {_short(one.asked)}: answered {_short(one.answered)} ({one.verdict})" for one in self.answers),
            *(f"held out, {one.name}: {one.before:.3f} before, {one.after:.3f} after" for one in self.comparisons),
            *(f"alarm {one.name}: in {one.steps} steps, first in step {one.first_step}" for one in self.alarms),
            f"the model is in {self.export}, everything else in {self.folder}",
        )

    def tables(self) -> RenderableType:
        """For a terminal."""
        parts: list[RenderableType] = [Text()]
        if self.comparisons:
            figures = _table("held out", "before", "after")
            for one in self.comparisons:
                figures.add_row(one.name, f"{one.before:.3f}", Text(f"{one.after:.3f}", style="bold"))
            parts += [figures, Text()]
        if self.answers:
            answers = _table("asked", "answered", "verdict")
            for one in self.answers:
                answers.add_row(Text(_short(one.asked)), Text(_short(one.answered)), one.verdict)
            parts += [answers, Text()]
        if self.alarms:
            signs = _table("alarm", "first step", "steps")
            for one in self.alarms:
                signs.add_row(one.name, str(one.first_step), str(one.steps))
            parts += [signs, Text()]
        places = Table.grid(padding=(0, 3, 0, 0))
        for what, where in (("the model", self.export), ("everything else", self.folder)):
            places.add_row(Text(what, style="dim"), Text(str(where), overflow="fold"))
        return Group(*parts, places)


def summarize(
    rows: Sequence[Metrics],
    responses: Iterable[ScoredRollout],
    *,
    wall_s: float,
    export: Path,
    folder: Path,
    origin: Origin,
) -> Summary:
    """`rows`: metrics.jsonl, in order."""
    steps = [row for row in rows if "time/step_s" in row]
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("held_out/"))
    histories = {name.removeprefix("held_out/"): [row[name] for row in rows if name in row] for name in names}
    step_s = sum(row["time/step_s"] for row in steps)
    return Summary(
        steps=int(steps[-1]["step"]) if steps else 0,
        tokens_per_s=sum(row["tokens"] for row in steps) / step_s if step_s else 0.0,
        wall_s=wall_s,
        comparisons=tuple(Comparison(name=name, before=own[0], after=own[-1]) for name, own in histories.items()),
        answers=tuple(_answer(scored) for scored in responses),
        alarms=tuple(_alarms(steps)),
        largest_gap=max((row["logprob_gap_max"] for row in steps if "logprob_gap_max" in row), default=0.0),
        export=export,
        folder=folder,
        origin=origin,
    )


def _alarms(steps: Sequence[Metrics]) -> Iterator[AlarmTold]:
    for name in dict.fromkeys(name for row in steps for name in row if name.startswith("alarms/")):
        own = [int(row["step"]) for row in steps if name in row]
        yield AlarmTold(name=name.removeprefix("alarms/"), first_step=own[0], steps=len(own))


def _answer(scored: ScoredRollout) -> Answer:
    judgement = scored.judgement
    return Answer(
        asked=scored.rollout.prompt.messages[-1].content,
        answered=scored.rollout.text,
        verdict=f"score {judgement.total:g}" if isinstance(judgement, Score) else judgement.kind.value,
    )


def _short(text: str) -> str:
    """Quoted, on one line; the middle of a long text is left out and counted."""
    half = MOST_CHARACTERS // 2
    left_out = len(text) - 2 * half
    if left_out <= 0:
        return repr(text)
    return f"{text[:half]!r} [... {left_out} characters left out ...] {text[-half:]!r}"


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, show_edge=False, padding=(0, 3, 0, 0))
    for heading in headings:
        table.add_column(heading)
    return table
