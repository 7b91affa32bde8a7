"""Where a run stands, saved and found again: what the driver knows, beside what the trainers write."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint import CheckpointError, Checkpoints, CheckpointState, step_of
from engine.checkpoint_room import DiskFull
from engine.checkpoint_writer import CheckpointWriter, Finish
from engine.config import BestIs, Config, OnFullDisk, Resume
from engine.fingerprint import flattened
from engine.need import checkpoint_bytes
from engine.stopping import StopSignals
from engine.tasks import OfflineTask, OnlineTask
from engine.tracking import Tracker
from workers.config import Schedule
from workers.file_entry import FileEntry
from workers.records import AlgorithmState

if TYPE_CHECKING:
    from workers.team import Workers

MAY_CHANGE = ("run.", "cluster.", "evaluation.", "checks.", "reward.workers", "reward.timeout_s", "rollout.max_running")
MAY_CHANGE += ("reward.judge.max_running", "reward.judge.gpus", "train.ranks", "rollout.engines")
"""Settings that do not decide what is learned; the last two but for the order in which numbers are summed."""
NO_STEP = -1
"""The step last saved, where that came to nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    step: int
    next_draw: int
    lessons_taken: int
    """Of those that the row at `next_draw` makes; 0 for prompts, and where a row is a lesson."""
    algorithm: AlgorithmState


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a run begins, or goes on."""

    progress: Progress
    folder: Path | None
    """The checkpoint that holds the rest of it; None at the beginning."""

    @property
    def step(self) -> int:
        return self.progress.step


def open_checkpoints(config: Config, *, moving_aside: bool) -> Checkpoints:
    """The run's checkpoints. With `run.resume=never` an earlier run of the same name is moved aside, never deleted."""
    folder = config.run_folder
    if moving_aside and config.run.resume is Resume.NEVER and folder.exists():
        number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.{n}").exists())
        folder.rename(folder.with_name(f"{folder.name}.{number}"))
    return Checkpoints(folder=folder / "checkpoints", keep=config.run.keep_checkpoints)


def find_start(config: Config, data_fingerprint: str, checkpoints: Checkpoints, tracker: Tracker) -> Start:
    """Where the run stands: at its newest valid checkpoint, or at its beginning.

    Raises CheckpointError when there are checkpoints but none is valid, or when they belong to another run.
    """
    saved = checkpoints.newest_valid()
    if saved is None:
        tracker.begin(config, position=0)
        beginning = Progress(step=0, next_draw=0, lessons_taken=0, algorithm=config.algo.initial_state())
        return Start(progress=beginning, folder=None)
    for skipped in saved.skipped:
        tracker.say(f"passed over the damaged checkpoint {skipped.path}: {skipped.reason}")
    state = saved.state
    try:
        state.refuse_other_run(config=deciding_settings(config), data_fingerprint=data_fingerprint)
    except CheckpointError as difference:
        if config.run.resume is not Resume.DESPITE_CHANGES:
            raise
        tracker.say(f"run.resume={config.run.resume.value}: {difference}")
    # What a finished run measured after its last checkpoint is not done again.
    is_over = saved.step >= config.run.steps and tracker.has_finished(steps=config.run.steps)
    tracker.begin(config, position=tracker.position() if is_over else state.metrics_bytes)
    tracker.say(f"going on after step {saved.step}, from {saved.path}")
    progress = Progress(
        step=saved.step,
        next_draw=state.next_draw,
        lessons_taken=state.lessons_taken,
        algorithm=state.algorithm,
    )
    return Start(progress=progress, folder=saved.path)


def begin_to_save(folder: Path, config: Config, workers: Workers) -> Finish:
    """What the trainers hold, and a reference that is not as the run began."""
    writing = [workers.policy.save(folder), workers.critic.save(folder)]
    if config.algo.online and config.algo.reference_refresh.every_steps:
        writing.append(workers.reference.save(folder))

    def finish() -> list[FileEntry]:
        return [entry for written in writing for of_rank in written() for entry in of_rank]

    return finish


def nothing_more(folder: Path) -> None:
    """A driver that holds nothing of its own."""


class SavePoints:
    """Where a run stands after each step, and when that is written down: where it is due, and when it is to stop."""

    def __init__(
        self,
        config: Config,
        task: OnlineTask | OfflineTask,
        workers: Workers,
        tracker: Tracker,
        checkpoints: Checkpoints,
        start: Start,
        *,
        stop: StopSignals,
        committed: Callable[[], None],
    ) -> None:
        """`committed` is told of each checkpoint, when it is one."""
        self._config, self._data_fingerprint, self._workers, self._tracker = config, task.fingerprint, workers, tracker
        self._checkpoints = checkpoints
        self._writer = CheckpointWriter(checkpoints, need_bytes=int(checkpoint_bytes(config)))
        self._here, self._saved_step, self._write_more = start.progress, start.step, nothing_more
        self._stop, self._committed = stop, committed

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """The run's steps: a signal leaves none of them half done, and the run is saved where it then stands."""
        try:
            with self._writer:
                try:
                    with self._stop.held():
                        yield
                except KeyboardInterrupt:
                    self._tracker.say(f"{self._stop.asked} after step {self._here.step}")
                    self._save()
                    with self._minding_a_full_disk():
                        self._writer.settle()
                    raise
                with self._minding_a_full_disk():
                    self._writer.settle()
        finally:
            self._tell_committed()

    @contextmanager
    def may_stop(self) -> Iterator[None]:
        """A part of a step that changes nothing that a checkpoint holds: it may be left at any moment."""
        with self._stop.allowed():
            yield

    def reached(self, here: Progress, *, write_more: Callable[[Path], None] = nothing_more) -> None:
        """A step is done; from here on, whoever stops the run stops it after this step. `write_more`: what the driver
        holds beside it."""
        self._here, self._write_more = here, write_more
        self._tell_committed()

    def save_where_due(self) -> None:
        if self._config.run.is_due(self._here.step - 1, every_steps=self._config.run.save_every_steps):
            self._save()

    def _save(self) -> None:
        if self._here.step == self._saved_step:
            return
        here, config = self._here, self._config
        state = CheckpointState(
            step=here.step,
            next_draw=here.next_draw,
            lessons_taken=here.lessons_taken,
            algorithm=here.algorithm,
            metrics_bytes=self._tracker.position(),
            weights_version=here.step,
            seed=config.run.seed,
            config=deciding_settings(config),
            data_fingerprint=self._data_fingerprint,
        )

        def begin(folder: Path) -> Finish:
            finish = begin_to_save(folder, config, self._workers)
            self._write_more(folder)
            return finish

        with self._tracker.phase("save"):
            # By itself: what became of the one before is no reason to leave this one out. And it may be the best.
            with self._minding_a_full_disk():
                self._writer.settle()
            with self._minding_a_full_disk():
                self._writer.save(here.step, begin, state, best=self._best_step())
                self._saved_step = here.step

    def _best_step(self) -> frozenset[int]:
        """Of those that have a checkpoint, and the one that is about to."""
        run = self._config.run
        if not run.keep_best:
            return frozenset()
        steps = {self._here.step, *(step_of(path) for path in self._checkpoints.folders())}
        values = {step: value for step, value in self._tracker.figures(run.keep_best).items() if step in steps}
        if not values:
            self._tracker.say(f"run.keep_best: no step with a checkpoint has a metric {run.keep_best!r} yet")
            return frozenset()
        choose = max if run.best_is is BestIs.HIGHEST else min
        return frozenset({choose(values, key=lambda step: (values[step], step))})

    def _tell_committed(self) -> None:
        """Also what went wrong behind the run's back."""
        with self._minding_a_full_disk():
            for path in self._writer.committed():
                self._tracker.say(f"saved {path}")
                self._committed()

    @contextmanager
    def _minding_a_full_disk(self) -> Iterator[None]:
        try:
            yield
        except DiskFull as full:
            if self._config.run.on_full_disk is OnFullDisk.STOP:
                raise
            self._saved_step = NO_STEP
            self._tracker.say(f"{full} (run.on_full_disk=go_on: the run goes on, and saves again when it is due)")


def deciding_settings(config: Config) -> Mapping[str, str]:
    """The settings that a resumed run must share with the one that it goes on from."""
    settings = flattened(config)
    deciding = {key: value for key, value in settings.items() if not key.startswith(MAY_CHANGE)}
    if config.train.schedule is not Schedule.CONSTANT:
        deciding["run.steps"] = settings["run.steps"]
    if config.tuning.dropout:
        # What it leaves out is drawn by each rank for itself.
        deciding["train.ranks"] = settings["train.ranks"]
    return deciding | {"run.seed": settings["run.seed"]}
