"""Where a run's numbers go: a line for the person, metrics.jsonl for programs, TensorBoard for curves."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import yaml
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from engine.config import Config
from rewards.score import Score
from workers.records import Metrics, ScoredRollout

if TYPE_CHECKING:
    from engine.evaluation import HeldOut

LINE_METRICS = (
    ("reward", "reward/mean", ".3f"),
    ("loss", "loss", ".4f"),
    ("kl", "kl", ".4f"),
    ("entropy", "entropy", ".3f"),
    ("length", "response_length/mean", ".1f"),
    ("gap", "logprob_gap_max", ".1e"),
    ("grad", "gradient_norm", ".2f"),
)
"""What a step's line shows, where the step has it."""


class Tracker:
    """One run's record. Owns its folder's config.yaml, metrics.jsonl and tensorboard/."""

    def __init__(self, config: Config) -> None:
        self.folder = config.run_folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started = psutil.Process().create_time()
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._ticker = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._ticking = self._ticker.add_task("")
        if self._console.is_terminal:
            self._ticker.start()
        self._steps = config.run.steps
        self._metrics_path = self.folder / "metrics.jsonl"
        self._metrics_file = self._metrics_path.open("a", encoding="utf-8")
        self._curves = _Curves(self.folder / "tensorboard") if config.run.tensorboard else None
        self._step = 0
        self._phases: Metrics = {}
        self._labels: dict[str, str] = {}
        self._responses: tuple[ScoredRollout, ...] = ()

    def wall_s(self) -> float:
        """Since this process started."""
        return time.time() - self._started

    def say(self, text: str) -> None:
        """One line for the person, with the time since the process started."""
        self._console.print(f"[dim]{self.wall_s():6.1f} s[/dim]  {_escaped(text)}")
        self._doing(text)

    def _doing(self, text: str) -> None:
        """On a terminal, what is going on right now and for how long, below the last line."""
        if self._console.is_terminal:
            self._ticker.reset(self._ticking, description=_escaped(text))

    # ------------------------------------------------------------------ steps

    @contextmanager
    def step(self, step: int) -> Iterator[Metrics]:
        """Collects a step's metrics; writes them when the step has succeeded."""
        started = time.monotonic()
        self._step, self._phases, self._labels = step + 1, {}, {}
        metrics: Metrics = {}
        yield metrics
        metrics["time/step_s"] = time.monotonic() - started
        metrics |= {f"time/{name}_s": seconds for name, seconds in self._phases.items()}
        metrics["tokens_per_s"] = metrics["tokens"] / metrics["time/step_s"]
        self._write(step + 1, metrics, self._labels)
        self._say_step(step + 1, metrics)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's duration to the step's `time/<name>_s`."""
        self._doing(f"{name}, step {self._step}/{self._steps}")
        started = time.monotonic()
        yield
        self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - started

    def label(self, name: str, text: str) -> None:
        """A fact of the step that is not a number."""
        self._labels[name] = text

    def held_out(self, step: int, result: HeldOut) -> None:
        self._write(step, result.metrics(), {})
        self._responses = result.responses
        self.say(
            f"held out after {step} steps: {result.sampled:.3f} sampled, {result.greedy:.3f} greedy "
            f"({result.prompts} prompts, {result.samples} samples, {result.unjudged} not judged)"
        )

    def held_out_loss(self, step: int, nll: float) -> None:
        self._write(step, {"held_out/nll": nll}, {})
        self.say(f"held out after {step} steps: {nll:.4f} nats per trained token")

    def _say_step(self, step: int, metrics: Metrics) -> None:
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

    def begin(self, config: Config, *, position: int) -> None:
        """Once it is known where the run stands: forget the metrics of steps that will be done again, and write down
        the configuration. A run that is refused leaves the earlier one's record as it was."""
        self._metrics_file.truncate(position)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(plain(config), sort_keys=False))

    def close(self) -> None:
        """Give the terminal and the files back; also when the run has failed."""
        if self._console.is_terminal:
            self._ticker.stop()
        self._metrics_file.close()
        if self._curves is not None:
            self._curves.close()

    def finish(self, *, export: Path) -> None:
        """Write summary.json and show the person what came out and where it is."""
        rows = [json.loads(line) for line in self._metrics_path.read_text().splitlines()]
        steps = [row for row in rows if "time/step_s" in row]
        held_out = [row for row in rows if any(name.startswith("held_out/") for name in row)]
        summary: dict[str, object] = {
            "steps": steps[-1]["step"] if steps else 0,
            "tokens_per_s": _ratio(sum(row["tokens"] for row in steps), sum(row["time/step_s"] for row in steps)),
            "export": str(export),
        }
        for name in ("sampled", "greedy", "best", "nll"):
            values = [row[f"held_out/{name}"] for row in held_out if f"held_out/{name}" in row]
            suffix = "" if name == "sampled" else f"_{name}"
            if values:
                summary |= {f"held_out{suffix}_before": values[0], f"held_out{suffix}_after": values[-1]}
        gaps = [row["logprob_gap_max"] for row in steps if "logprob_gap_max" in row]
        if gaps:
            summary["logprob_gap_max"] = max(gaps)
        summary["wall_s"] = round(self.wall_s(), 2)
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        self._say_end(summary)

    def _say_end(self, summary: Mapping[str, object]) -> None:
        for scored in self._responses:
            rollout, judgement = scored.rollout, scored.judgement
            verdict = f"score {judgement.total:g}" if isinstance(judgement, Score) else judgement.kind.value
            self.say(f"asked {rollout.prompt.messages[-1].content!r}: answered {rollout.text!r} ({verdict})")
        for name in ("sampled", "greedy", "nll"):
            key = "held_out" if name == "sampled" else f"held_out_{name}"
            if f"{key}_before" in summary:
                self.say(
                    f"held out, {name}: {summary[f'{key}_before']:.3f} before, {summary[f'{key}_after']:.3f} after"
                )
        self.say(f"the model is in {summary['export']}, everything else in {self.folder}")


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


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
