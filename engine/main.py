"""Post-train a language model: the whole run on one page.

    python -m engine.main                                  # a tiny policy learns arithmetic, on a laptop CPU
    python -m engine.main train.learning_rate=1e-4         # any key of any section, as `--help` lists them
    python -m engine.main model.path=my/model data=gsm8k data.path=train.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.config import ConfigError, help_text, load_config
from engine.data.base import DataError
from rewards.load import RewardError

MISTAKES = (ConfigError, DataError, RewardError)
"""What a person can mend: told without a traceback, before Ray starts."""


def main(argv: Sequence[str]) -> None:
    config = load_config(argv)
    # Heavy modules come after the cheap checks: a misspelt key is answered at once.
    from engine.checkpoint import Checkpoints
    from engine.export import export
    from engine.loop import train_online
    from engine.offline import train_offline
    from engine.tasks import prepare_offline, prepare_online
    from engine.tracking import Tracker
    from workers.team import start_workers

    tracker = Tracker(config)
    tracker.say(f"reading {type(config.data).__name__} for {config.model.path}")
    online = config.algo.online
    task = prepare_online(config) if online else prepare_offline(config)
    train = train_online if online else train_offline
    checkpoints = Checkpoints(folder=config.run_folder / "checkpoints", keep=config.run.keep_checkpoints)
    with start_workers(config.team(), task.reward, announce=tracker.say) as workers:
        train(config, task, workers, tracker, checkpoints)
        exported = export(config, workers)
    tracker.finish(export=exported)


def run(argv: Sequence[str]) -> int:
    """The exit code: 0 done, 2 a mistake of the person's, 130 stopped by Ctrl-C."""
    if {"-h", "--help"} & set(argv):
        print(help_text())
        return 0
    try:
        main(argv)
    except MISTAKES as mistake:
        print(f"heliostat: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("heliostat: stopped; the newest checkpoint is where the run goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
