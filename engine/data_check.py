"""What is known of a run's data before anything expensive starts: which form they have, which rows are bad."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.algorithms.base import Objective
from engine.config import Config
from engine.data.base import RowKind
from engine.data.checked import CheckedData
from engine.tasks import OfflineTask, OnlineTask, is_stream, prepare_offline, prepare_online

if TYPE_CHECKING:
    from engine.tracking import Tracker


def only_checks(config: Config) -> bool:
    return isinstance(config.data, CheckedData) and config.data.check


def check_data(config: Config) -> str:
    """Reads and renders every row (of a stream it reads the first ones), tries the reward, and says what was found.

    Raises DataError, which tells all rows that are bad.
    """
    if is_stream(config):
        stream = config.data.stream(kind_of(config))
        return "\n".join([*stream.described, f"no bad rows among the first {stream.bad.seen:,}"])
    task = prepare_online(config) if config.algo.online else prepare_offline(config)
    lines = [*config.data.described(kind_of(config)), *task.remarks]
    return "\n".join([*lines, f"no bad rows; {len(task):,} to train on, {len(task.held_out):,} held out"])


def account_for_data(config: Config, task: OnlineTask | OfflineTask, tracker: Tracker) -> None:
    """Says what the data were taken for, and lists the rows that were left out in the run's folder."""
    data, kind = config.data, kind_of(config)
    if not isinstance(data, CheckedData):
        return
    for line in data.described(kind):
        tracker.say(line)
    bad = data.bad(kind).with_later(task.bad)
    if bad.found:
        share = len(bad.found) / bad.seen
        tracker.say(f"left out {len(bad.found):,} of {bad.seen:,} rows ({share:.1%}): {bad.counted()}")
        tracker.say(f"they are listed in {bad.write(tracker.folder)}")


def kind_of(config: Config) -> RowKind:
    """Which rows the run's algorithm learns from."""
    return config.algo.rows if isinstance(config.algo, Objective) else RowKind.QUESTIONS
