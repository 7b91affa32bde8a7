"""Where a run's numbers go: the screen for the person, metrics.jsonl for programs, TensorBoard for curves."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from engine.alarms import Alarm, AlarmBegan, alarms, begun
from engine.config import Config, OnAlarm
from engine.history import History
from engine.live_view import Shown
from engine.origin import origin_of
from engine.screen import Screen
from engine.summary import summarize
from engine.supervisor import BEGAN_S
from workers.crash_points import crash_points
from workers.records import Metrics, ScoredRollout

if TYPE_CHECKING:
    from engine.evaluation import HeldOut

LINE_METRICS = (
    ("reward", "reward/mean", ".3f"),
    ("loss", "loss", ".4f"),
    ("accuracy", "accuracy", ".3f"),
    ("margin", "margin", ".3f"),
    ("kl", "kl", ".4f"),
    ("entropy", "entropy", ".3f"),
    ("length", "response_length/mean", ".1f"),
    ("gap", "logprob_gap_max", ".1e"),
    ("grad", "gradient_norm", ".2f"),
)
"""What a step's line shows, where the step has it."""
NOT_OF_HELD_OUT = ("skipped_updates",)
"""Figures of learning, which looking has not."""


class Tracker:
    """One run's record. Owns its folder's config.yaml, metrics.jsonl and tensorboard/."""

    def __init__(self, config: Config) -> None:
        self.folder = config.run_folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._origin = origin_of(config)
        self._started = BEGAN_S
        self._name, self._steps = config.run.name, config.run.steps
        self._metrics_path, self._summary = self.folder / "metrics.jsonl", self.folder / "summary.json"
        self._metrics_file = self._metrics_path.open("a", encoding="utf-8")
        self._curves = _Curves(self.folder / "tensorboard") if config.run.tensorboard else None
        self._done, self._held_out = History(), History()
        self._responses: tuple[ScoredRollout, ...] = ()
        self._step = 0
        self._phases: Metrics = {}
        self._labels: dict[str, str] = {}
        self._on_alarm = config.checks.alarms
        self._start_s: dict[str, float] = {}
        self._step_began = time.monotonic()
        self._doing, self._doing_since = "", time.monotonic()
        self._screen = Screen(self._look)

    def wall_s(self) -> float:
        """Since the command started."""
        return time.time() - self._started

    def say(self, text: str) -> None:
        """One line for the person, with the time since the command started."""
        self._screen.say(self.wall_s(), text)
        self._doing, self._doing_since = text, time.monotonic()

    def _look(self) -> Shown:
        """The present moment, for the live view; asked from its thread."""
        now = time.monotonic()
        return Shown(
            name=self._name,
            steps=self._steps,
            elapsed_s=self.wall_s(),
            since_step_s=now - self._step_began,
            doing=self._doing,
            doing_s=now - self._doing_since,
            done=self._done.until_now(),
            held_out=self._held_out.until_now(),
        )

    def started(self, took_s: Mapping[str, float]) -> None:
        """Where the start went: said now, and written with the first step. `took_s`: Ray, then roles side by side."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in took_s.items())
        self.say(f"everybody is ready ({parts} s)")
        self._start_s = {f"time/start/{name}_s": took for name, took in took_s.items()}

    # ------------------------------------------------------------------ steps

    @contextmanager
    def step(self, step: int) -> Iterator[Metrics]:
        """Collects a step's metrics; writes them when the step has succeeded."""
        self._step_began = time.monotonic()
        if self._start_s:
            self._start_s["time/start_s"] = self.wall_s()
        self._step, self._phases, self._labels = step + 1, {}, {}
        metrics: Metrics = {}
        yield metrics
        metrics["time/step_s"] = time.monotonic() - self._step_began
        metrics |= {f"time/{name}_s": seconds for name, seconds in self._phases.items()}
        metrics["tokens_per_s"] = metrics["tokens"] / metrics["time/step_s"]
        self._write(step + 1, metrics | self._start_s, self._labels)
        self._start_s = {}
        self._done.add(step + 1, metrics)
        self._step_began = time.monotonic()
        self._say_step(step + 1, metrics)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows what is going on; inside a step, adds the block's duration to its `time/<name>_s`."""
        self._doing, self._doing_since = f"step {self._step}/{self._steps}: {name}", time.monotonic()
        started = time.monotonic()
        with crash_points(f"driver/{name}"):
            yield
        self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - started

    def alarms(self, metrics: Metrics, *, responses: Path) -> tuple[Alarm, ...]:
        """Marks in a step's metrics the signs that hold after it (engine/alarms.py). Returns those that are new."""
        if self._on_alarm is OnAlarm.OFF:
            return ()
        holding = alarms(self._done, metrics, responses=responses)
        metrics |= {alarm.metric: 1.0 for alarm in holding}
        return begun(self._done, holding)

    def say_alarms(self, new: Sequence[Alarm]) -> None:
        """Raises AlarmBegan where the run is to stop at one."""
        lines = [f"alarm {alarm.name}: after step {self._step} {alarm.told}; look at {alarm.look_at}" for alarm in new]
        for line in lines:
            self.say(line)
        if lines and self._on_alarm is OnAlarm.STOP:
            mend = " and ".join(dict.fromkeys(alarm.mend for alarm in new))
            raise AlarmBegan(
                "\n".join([f"an alarm began, and checks.alarms is {self._on_alarm.value}:", *lines])
                + f"\nMend {mend}, or go on with checks.alarms=warn."
            )

    def show_lines(self, lines: Sequence[str]) -> None:
        """A block of lines, which may hold what a model wrote."""
        self._screen.block(lines)

    def label(self, name: str, text: str) -> None:
        """A fact of the step that is not a number."""
        self._labels[name] = text

    def held_out(self, step: int, result: HeldOut) -> None:
        self._responses = result.responses
        self._add_held_out(step, result.metrics())
        self.say(
            f"held out after {step} steps: {result.sampled:.3f} +- {result.standard_error:.3f} sampled, "
            f"{result.greedy:.3f} greedy ({result.prompts} prompts, {result.samples} samples, "
            f"{result.unjudged} not judged)"
        )

    def has_measured(self, step: int) -> bool:
        """Whether there are held-out figures of the policy after so many steps."""
        return self._held_out.has(step)

    def figures(self, name: str) -> dict[int, float]:
        """A metric by step, of learning or of what is held out, as far as it was written."""
        return {
            int(step): float(value)
            for history in (self._done, self._held_out)
            for step, value in zip(history.steps(name), history.values(name), strict=True)
        }

    def held_out_figures(self, step: int, metrics: Metrics) -> None:
        """An objective's own figures, on lessons that it does not learn from."""
        shown = {name: value for name, value in metrics.items() if name not in NOT_OF_HELD_OUT}
        self._add_held_out(step, {f"held_out/{name}": value for name, value in shown.items()})
        told = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self.say(f"held out after {step} steps: {told}")

    def _add_held_out(self, step: int, metrics: Metrics) -> None:
        self._write(step, metrics, {})
        self._held_out.add(step, metrics)

    def _say_step(self, step: int, metrics: Metrics) -> None:
        """A line, unless the live view shows it all; what went wrong is told in both."""
        if metrics["skipped_updates"]:
            self.say(f"step {step}: {metrics['skipped_updates']:.0f} updates skipped, their gradient was not finite")
        if not self._screen.is_live:
            shown = [f"{label} {metrics[name]:{form}}" for label, name, form in LINE_METRICS if name in metrics]
            phases = " ".join(f"{name} {seconds:.2f}" for name, seconds in self._phases.items())
            self.say(f"step {step}/{self._steps}  {'  '.join(shown)}  {metrics['time/step_s']:.2f} s ({phases})")

    def _write(self, step: int, metrics: Mapping[str, float], labels: Mapping[str, str]) -> None:
        self._metrics_file.write(json.dumps({"step": step, **metrics, **labels}) + "\n")
        self._metrics_file.flush()
        if self._curves is not None:
            self._curves.write(step, metrics)

    # ------------------------------------------------------------------ resume and end

    def position(self) -> int:
        """Bytes of metrics.jsonl written so far, for a checkpoint."""
        return self._metrics_path.stat().st_size

    def has_finished(self, *, steps: int) -> bool:
        """Whether a run of so many steps has come to its end."""
        return self._summary.exists() and json.loads(self._summary.read_text())["steps"] >= steps

    def begin(self, config: Config, *, position: int) -> None:
        """Once it is known where the run stands: forget the metrics of steps that will be done again, and write down
        the configuration. A run that is refused leaves the earlier one's record as it was."""
        self._steps = config.run.steps
        self._metrics_file.truncate(position)
        self._done, self._held_out = History(), History()
        for row in self._rows():
            history = self._done if "time/step_s" in row else self._held_out
            step = row.pop("step")
            history.add(step, {name: value for name, value in row.items() if not isinstance(value, str)})
        (self.folder / "config.yaml").write_text(yaml.safe_dump(plain(config), sort_keys=False))

    def _rows(self) -> list[Metrics]:
        return [json.loads(line) for line in self._metrics_path.read_text().splitlines()]

    def close(self) -> None:
        """Give the terminal and the files back; also when the run has failed."""
        self._screen.close()
        self._metrics_file.close()
        if self._curves is not None:
            self._curves.close()

    def finish(self, *, export: Path) -> None:
        """Write summary.json and show the person what came out and where it is."""
        summary = summarize(
            self._rows(),
            self._responses,
            wall_s=self.wall_s(),
            export=export,
            folder=self.folder.absolute(),
            origin=self._origin,
        )
        self._summary.write_text(summary.to_json())
        if self._screen.is_live:
            self._doing = "done"
            self._screen.close()
            self._screen.show(summary.tables())
        else:
            for line in summary.lines():
                self.say(line)


class _Curves:
    """TensorBoard event files, written without importing torch."""

    def __init__(self, folder: Path) -> None:
        # TensorBoard takes half a second to import and nobody needs it before the first step.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        self._writer.close()


def plain(value: object) -> object:
    """A configuration as YAML can hold it; a chosen class is named by its `_target_`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {"_target_": f"{type(value).__module__}.{type(value).__qualname__}"}
        return named | {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    return value
