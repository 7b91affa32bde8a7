"""Post-train a language model: the whole run on one page.

python -m engine.main                                  # a tiny policy learns arithmetic, on a laptop CPU
python -m engine.main algo=grpo model=qwen2.5-7b       # the same code on GPUs
python -m engine.main train.learning_rate=1e-4         # any key of any section, as `--help` lists them
python -m engine.main model.path=my/model data=gsm8k data.path=train.jsonl
python -m engine.main algo=sft data=files data.path=chat.jsonl data.check=true     # only name the rows that are bad
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing

from engine.announcements import announcements
from engine.checkpoint import CheckpointError
from engine.config import Config, ConfigError, help_text, load_config
from engine.data.base import DataError
from engine.data_check import account_for_data, check_data, only_checks
from engine.fit import check_fit
from engine.machine import this_machine
from engine.restarts import with_restarts
from engine.resume import find_progress, open_checkpoints
from engine.tasks import prepare_offline, prepare_online
from engine.tracking import Tracker
from rewards.load import RewardError
from workers.bytecode import keep_bytecode
from workers.stopped import RunStopped

MISTAKES = (ConfigError, DataError, RewardError, CheckpointError)
"""What a person can mend: told without a traceback, before Ray starts."""


def main(argv: Sequence[str]) -> None:
    config = load_config(argv)
    if only_checks(config):
        print(check_data(config))
        return
    with_restarts(attempt, config)


def attempt(config: Config) -> None:
    """The run, from where it stands to its end."""
    fit = check_fit(config, this_machine())
    checkpoints = open_checkpoints(config)
    with closing(Tracker(config)) as tracker:
        tracker.say(fit)
        tracker.say(f"reading {type(config.data).__name__} for {config.model.path}")
        task = prepare_online(config) if config.algo.online else prepare_offline(config)
        config = config.for_rows(len(task))
        account_for_data(config, task, tracker)
        start = find_progress(config, task.fingerprint, checkpoints, tracker)
        if start.step >= config.run.steps:
            tracker.say(f"{config.run_folder} is complete; run.steps=<more> goes on, run.resume=never starts over")
            return
        for line in announcements(config, task):
            tracker.say(line)
        # Ray and torch take seconds to import: every mistake above is answered before.
        from engine.export import export
        from engine.loop import train_online
        from engine.offline import train_offline
        from workers.team import start_workers

        train = train_online if config.algo.online else train_offline
        team = config.team()
        with start_workers(
            team,
            task.rewards,
            task.canaries,
            announce=tracker.say,
            started=tracker.started,
            tell=tracker.show_lines,
        ) as workers:
            train(config, task, start, workers, tracker, checkpoints)
            with tracker.phase("export"):
                exported = export(config, workers)
        tracker.finish(export=exported)


def run(argv: Sequence[str]) -> int:
    """The exit code: 0 done, 1 the run could not go on, 2 a mistake of the person's, 130 Ctrl-C or SIGTERM."""
    if {"-h", "--help"} & set(argv):
        print(help_text())
        return 0
    keep_bytecode()
    # A cluster's polite kill ends a run as a person's does: every worker is buried.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Until there are workers to tell of, who asks what the run does is told where it is.
    signal.signal(signal.SIGUSR1, lambda number, frame: traceback.print_stack(frame))
    try:
        main(argv)
    except MISTAKES as mistake:
        print(f"heliostat: {mistake}", file=sys.stderr)
        return 2
    except RunStopped as stopped:
        # A worker's error carries a note: whose it is, and what that worker's log says.
        told = "\n".join([str(stopped), *getattr(stopped, "__notes__", ())])
        print(f"heliostat: the run stopped: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("heliostat: stopped; the same command goes on after the newest checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
