"""What is known of a run's data before anything expensive starts: which form they have, which rows are bad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from engine.algorithms.base import Objective
from engine.config import Config
from engine.data.bad_rows import BadRows
from engine.data.base import RowKind
from engine.data.files import FilesData
from engine.tasks import OnlineTask, prepare_offline, prepare_online

if TYPE_CHECKING:
    from engine.tracking import Tracker


@runtime_checkable
class CheckedData(Protocol):
    """A data set that says what it found."""

    @property
    def check(self) -> bool:
        """Whether the run is to look at its rows, and do nothing else."""
        ...

    def described(self, kind: RowKind) -> tuple[str, ...]:
        """A line for each source; none where rows are read while the run goes on."""
        ...

    def bad(self, kind: RowKind) -> BadRows:
        """The rows that were left out."""
        ...


def only_checks(config: Config) -> bool:
    return isinstance(config.data, CheckedData) and config.data.check


def check_data(config: Config) -> str:
    """Reads and renders every row (of a stream it reads the first ones), tries the reward, and says what was found.

    Raises DataError, which tells all rows that are bad.
    """
    if is_streamed(config):
        stream = config.data.stream(kind_of(config))
        return "\n".join([*stream.described, f"no bad rows among the first {stream.bad.seen:,}"])
    task = prepare_online(config) if config.algo.online else prepare_offline(config)
    train = task.prompts if isinstance(task, OnlineTask) else task.lessons
    lines = config.data.described(kind_of(config))
    return "\n".join([*lines, f"no bad rows; {len(train):,} to train on, {len(task.held_out):,} held out"])


def account_for_data(config: Config, tracker: Tracker) -> None:
    """Says what the data were taken for, and lists the rows that were left out in the run's folder."""
    data, kind = config.data, kind_of(config)
    if not isinstance(data, CheckedData):
        return
    for line in data.described(kind):
        tracker.say(line)
    bad = data.bad(kind)
    if bad.found:
        share = len(bad.found) / bad.seen
        tracker.say(f"left out {len(bad.found):,} of {bad.seen:,} rows ({share:.1%}): {bad.counted()}")
        tracker.say(f"they are listed in {bad.write(tracker.folder)}")


def is_streamed(config: Config) -> bool:
    return isinstance(config.data, FilesData) and config.data.streaming


def kind_of(config: Config) -> RowKind:
    """Which rows the run's algorithm learns from."""
    return config.algo.rows if isinstance(config.algo, Objective) else RowKind.QUESTIONS
