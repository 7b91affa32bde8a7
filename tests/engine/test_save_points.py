"""When a run is saved: where it is due, and where it is asked to stop; and what becomes of one that cannot be."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import checkpoint_writer
from engine.checkpoint import CheckpointError, Checkpoints
from engine.checkpoint_room import DiskFull
from engine.config import load_config
from engine.resume import Progress, SavePoints, Start, find_start
from engine.stopping import STOP_SIGNALS, StopAsked, StopSignals
from engine.tracking import Tracker
from workers.file_entry import FileEntry
from workers.records import AlgorithmState
from workers.stopped import WorkerDied

STATE = AlgorithmState(kl_coef=0.1)


@dataclass(slots=True)
class Trainer:
    """Writes what it is at."""

    step: int = 0
    fails: Exception | None = None

    def save(self, folder: Path) -> Callable[[], list[tuple[FileEntry, ...]]]:
        step, fails = self.step, self.fails

        def written() -> list[tuple[FileEntry, ...]]:
            if fails is not None:
                raise fails
            (folder / "weights.txt").write_text(f"{step}")
            return [()]

        return written


@dataclass(slots=True, kw_only=True)
class Run:
    """Steps of a run that does nothing but save."""

    folder: Path
    overrides: tuple[str, ...] = ()
    trainer: Trainer = field(default_factory=Trainer)
    committed: int = 0
    start: Start | None = None

    def go(self, during: Callable[[int], None] = lambda step: None, *, reward: Callable[[int], float] = float) -> None:
        """`during` a step, which holds the signals; `reward` of a step is its `reward/mean`."""
        config = load_config(
            ["run.steps=9", "run.save_every_steps=3", "run.tensorboard=false", "train.schedule=constant",
             f"run.folder={self.folder}", "run.name=r", *self.overrides]
        )  # fmt: skip
        checkpoints = Checkpoints(folder=config.run_folder / "checkpoints", keep=config.run.keep_checkpoints)
        workers = SimpleNamespace(policy=self.trainer, critic=SimpleNamespace(save=lambda folder: list))
        task, stop = SimpleNamespace(fingerprint="data"), StopSignals()
        stop.install()
        with closing(Tracker(config)) as tracker:
            self.start = find_start(config, task.fingerprint, checkpoints, tracker)
            saves = SavePoints(
                config, task, workers, tracker, checkpoints, self.start, stop=stop, committed=self._count
            )
            with saves.between_steps():
                for step in range(self.start.step, config.run.steps):
                    with tracker.step(step) as metrics:
                        with saves.may_stop():
                            pass
                        during(step)
                        self.trainer.step = step + 1
                        metrics |= {"tokens": 1.0, "skipped_updates": 0.0, "reward/mean": reward(step + 1)}
                    here = Progress(step=step + 1, next_draw=4 * (step + 1), lessons_taken=0, algorithm=STATE)
                    saves.reached(here)
                    saves.save_where_due()

    def _count(self) -> None:
        self.committed += 1

    @property
    def kept(self) -> dict[int, str]:
        """What the trainer wrote, by step."""
        files = (self.folder / "r" / "checkpoints").glob("step_*/weights.txt")
        return {int(file.parent.name.removeprefix("step_")): file.read_text() for file in sorted(files)}


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def at(step: int, act: Callable[[], object]) -> Callable[[int], None]:
    return lambda now: act() if now == step else None


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_saves_where_it_is_due_and_the_last_step_is(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, overrides=("run.steps=8", "run.keep_checkpoints=9"))
    run.go()
    assert run.kept == {3: "3", 6: "6", 8: "8"} and run.committed == 3


def test_a_run_that_is_asked_to_stop_in_a_step_finishes_it_and_saves_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(folder=tmp_path)
    with pytest.raises(StopAsked):
        run.go(at(4, ask))
    assert run.kept == {3: "3", 5: "5"}
    assert "stopped by SIGTERM after step 5" in capsys.readouterr().out
    run.go()
    assert run.start is not None and run.start.progress == Progress(
        step=5, next_draw=20, lessons_taken=0, algorithm=STATE
    )


def test_a_step_that_is_left_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    """Asked in the part of a step that may be left: it stands where the step before ended."""
    run = Run(folder=tmp_path)

    def leave() -> None:
        raise StopAsked(signal.SIGTERM)

    with pytest.raises(StopAsked):
        run.go(at(4, leave))
    assert run.kept == {3: "3", 4: "4"}
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 4


def test_what_is_saved_already_is_not_saved_again(tmp_path: Path) -> None:
    run = Run(folder=tmp_path)
    with pytest.raises(StopAsked):
        run.go(at(2, ask))
    assert run.kept == {3: "3"} and run.committed == 1


def test_a_run_that_fails_saves_nothing_more(tmp_path: Path) -> None:
    run = Run(folder=tmp_path)
    with pytest.raises(ZeroDivisionError):
        run.go(at(4, lambda: 1 / 0))
    assert run.kept == {3: "3"}


NO_ROOM = OSError(28, "No space left on device")


def test_a_full_disk_stops_the_run_with_what_it_needs_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    run = Run(folder=tmp_path)
    with pytest.raises(DiskFull, match="step 6 could not be saved"):
        run.go(at(5, lambda: setattr(run.trainer, "fails", NO_ROOM)))
    assert run.kept == {3: "3"}


def test_a_run_may_go_on_without_room_and_saves_when_there_is_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(folder=tmp_path, overrides=("run.on_full_disk=go_on",))
    full = {5: NO_ROOM, 7: None}
    run.go(lambda step: setattr(run.trainer, "fails", full[step]) if step in full else None)
    assert run.kept == {3: "3", 9: "9"}
    assert "step 6 could not be saved" in (told := capsys.readouterr().out) and "the run goes on" in told


@pytest.mark.parametrize(("full_at", "kept"), [(9, {3, 6}), (6, {3, 9}), (3, {6, 9})])
@pytest.mark.parametrize("goes_on", [False, True])
def test_a_disk_that_fills_up_behind_the_runs_back_is_told_and_costs_that_checkpoint_alone(
    full_at: int,
    kept: set[int],
    goes_on: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seal = checkpoint_writer._seal

    def full(folder: Path, written: Sequence[FileEntry]) -> None:
        if f"step_{full_at:06d}" in folder.name:
            raise NO_ROOM
        seal(folder, written)

    monkeypatch.setattr(checkpoint_writer, "_seal", full)
    run = Run(folder=tmp_path, overrides=("run.on_full_disk=go_on",) if goes_on else ())
    with nullcontext() if goes_on else pytest.raises(DiskFull, match=f"step {full_at} could not be saved"):
        run.go()
    told = capsys.readouterr().out
    assert set(run.kept) == kept if goes_on else full_at not in run.kept
    assert told.count("the run goes on") == goes_on


@pytest.mark.parametrize(
    ("goes_on", "fails", "ends"),
    [(False, NO_ROOM, DiskFull), (True, NO_ROOM, StopAsked), (True, WorkerDied("policy 0 died"), WorkerDied)],
)
def test_a_stop_whose_save_fails_ends_with_what_failed_unless_the_run_may_do_without(
    tmp_path: Path, goes_on: bool, fails: Exception, ends: type[BaseException]
) -> None:
    run = Run(folder=tmp_path, overrides=("run.on_full_disk=go_on",) if goes_on else ())

    def ask_and_fail() -> None:
        run.trainer.fails = fails
        ask()

    with pytest.raises(ends):
        run.go(at(4, ask_and_fail))
    assert run.kept == {3: "3"}


def test_another_failure_of_a_save_stops_the_run_whatever_a_full_disk_does(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, overrides=("run.on_full_disk=go_on",))
    with pytest.raises(CheckpointError, match="Read-only"):
        run.go(at(5, lambda: setattr(run.trainer, "fails", OSError(30, "Read-only file system"))))


@pytest.mark.parametrize(
    ("keep", "best_is", "kept"),
    [(2, "highest", {2, 5, 6}), (2, "lowest", {3, 5, 6}), (1, "highest", {2, 6}), (1, "lowest", {3, 6})],
)
def test_the_checkpoint_where_a_metric_is_best_stays(tmp_path: Path, keep: int, best_is: str, kept: set[int]) -> None:
    rewards = {1: 0.2, 2: 0.9, 3: 0.1, 4: 0.3, 5: 0.4, 6: 0.5}
    more = ("run.steps=6", "run.save_every_steps=1", "run.keep_best=reward/mean", f"run.best_is={best_is}")
    more += (f"run.keep_checkpoints={keep}",)
    run = Run(folder=tmp_path, overrides=more)
    run.go(reward=rewards.__getitem__)
    assert set(run.kept) == kept


@pytest.mark.parametrize("has_finished", [True, False])
def test_what_a_run_measured_after_its_last_checkpoint_stays_if_it_has_come_to_its_end(
    tmp_path: Path, has_finished: bool
) -> None:
    run, metrics = Run(folder=tmp_path), tmp_path / "r" / "metrics.jsonl"
    run.go()
    steps = metrics.read_text()
    metrics.write_text(steps + '{"step": 9, "held_out/greedy": 0.5}\n')
    if has_finished:
        (tmp_path / "r" / "summary.json").write_text('{"steps": 9}')
    run.go()
    assert (metrics.read_text() != steps) == has_finished


def test_a_metric_that_nobody_has_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(folder=tmp_path, overrides=("run.keep_best=held_out/gredy",))
    run.go()
    assert "no step with a checkpoint has a metric 'held_out/gredy'" in capsys.readouterr().out
    assert set(run.kept) == {6, 9}


def test_changed_settings_are_refused_and_an_override_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(folder=tmp_path, overrides=("run.steps=3",))
    run.go()
    run.overrides = ("train.learning_rate=0.5",)
    with pytest.raises(CheckpointError, match=r"train\.learning_rate: saved .*, now 0\.5"):
        run.go()
    run.overrides = ("train.learning_rate=0.5", "run.resume=despite_changes")
    run.go()
    assert run.start is not None and run.start.step == 3
    assert "train.learning_rate: saved" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(folder=tmp_path, overrides=("run.steps=6",))
    run.go()
    (tmp_path / "r/checkpoints/step_000006/weights.txt").write_text("7")
    run.overrides = ()
    run.go()
    assert run.start is not None and run.start.step == 3
    assert "passed over the damaged checkpoint" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "r")
