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
from engine.checkpoint_room import DiskFull
from engine.config import ConfigError, help_text, load_config
from engine.data.base import DataError
from engine.data_check import account_for_data, check_data, only_checks
from engine.fit import check_fit
from engine.machine import this_machine
from engine.resume import SavePoints, find_start, open_checkpoints
from engine.stopping import StopSignals
from engine.supervisor import WORKER_DIED, Terms, supervised
from engine.tasks import prepare_offline, prepare_online
from engine.tracking import Tracker
from rewards.load import RewardError
from workers.bytecode import keep_bytecode
from workers.stopped import RunStopped, WorkerDied

MISTAKES = (ConfigError, DataError, RewardError, CheckpointError)
"""What a person can mend: told without a traceback, before Ray starts."""


def main(argv: Sequence[str], stop: StopSignals, terms: Terms, *, again: bool) -> None:
    """The run that `argv` asks for, from where it stands to its end. `again`: after a part of it that was killed."""
    config = load_config(argv)
    if only_checks(config):
        print(check_data(config))
        return
    terms.agree(max_restarts=config.run.max_restarts, grace_s=config.run.grace_s)
    # What the killed part has written is this run's own, and not an earlier one's that is to be moved aside.
    checkpoints = open_checkpoints(config, moving_aside=not again)
    fit = check_fit(config, this_machine())
    with closing(Tracker(config)) as tracker:
        tracker.say(fit)
        tracker.say(f"reading {type(config.data).__name__} for {config.model.path}")
        task = prepare_online(config) if config.algo.online else prepare_offline(config)
        config = config.for_rows(len(task))
        account_for_data(config, task, tracker)
        start = find_start(config, task.fingerprint, checkpoints, tracker)
        if start.step >= config.run.steps and tracker.has_finished(steps=config.run.steps):
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
        with start_workers(
            config.team(),
            task.rewards,
            task.canaries,
            announce=tracker.say,
            started=tracker.started,
            tell=tracker.show_lines,
        ) as workers:
            saves = SavePoints(config, task, workers, tracker, checkpoints, start, stop=stop, committed=terms.committed)
            train(config, task, start, workers, tracker, saves)
            with tracker.phase("export"):
                exported = export(config, workers)
        tracker.finish(export=exported)


def run(argv: Sequence[str], terms: Terms | None = None, again: bool = False) -> int:
    """The exit code: 0 done, 1 the run could not go on, 2 a mistake of the person's, 3 a worker died that could not be
    replaced, 130 Ctrl-C, 143 SIGTERM."""
    if {"-h", "--help"} & set(argv):
        print(help_text())
        return 0
    keep_bytecode()
    stop = StopSignals()
    stop.install()
    # Until there are workers to tell of, who asks what the run does is told where it is.
    signal.signal(signal.SIGUSR1, lambda number, frame: traceback.print_stack(frame))
    try:
        main(argv, stop, terms or Terms(), again=again)
    except DiskFull as full:
        print(f"heliostat: the run stopped: {full}", file=sys.stderr)
        return 1
    except MISTAKES as mistake:
        print(f"heliostat: {mistake}", file=sys.stderr)
        return 2
    except RunStopped as stopped:
        # A worker's error carries a note: whose it is, and what that worker's log says.
        told = "\n".join([str(stopped), *_notes(stopped)])
        print(f"heliostat: the run stopped: {told}", file=sys.stderr)
        return WORKER_DIED if isinstance(stopped, WorkerDied) else 1
    except KeyboardInterrupt as interrupt:
        # A checkpoint that failed on the way out carries a note.
        told = "\n".join([f"{stop.asked}; the same command goes on after the newest checkpoint", *_notes(interrupt)])
        print(f"heliostat: {told}", file=sys.stderr)
        return stop.asked.exit_code
    return 0


def _notes(error: BaseException) -> Sequence[str]:
    return getattr(error, "__notes__", ())


if __name__ == "__main__":
    sys.exit(supervised(lambda terms, again: run(sys.argv[1:], terms, again)))
