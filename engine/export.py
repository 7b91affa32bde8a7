"""Write a run's model as a plain Hugging Face folder that transformers and vLLM load, and check that it says the same.

python -m engine.export runs/sft-nano-arithmetic              # of a run with an adapter: the adapter
python -m engine.export runs/sft-nano-arithmetic --merge      # the adapter merged into its base
python -m engine.export runs/sft-nano-arithmetic --step 20 --to models/step_20
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint import CheckpointError, Checkpoints, SavedCheckpoint
from engine.config import Config, ConfigError
from engine.data.base import DataError
from engine.saved_config import saved_config
from engine.tasks import tokenizer_of
from workers.stopped import RunStopped

if TYPE_CHECKING:
    from workers.team import Workers

MISTAKES = (ConfigError, DataError, CheckpointError)


def export(config: Config, workers: Workers) -> Path:
    """What a run leaves behind in `<run>/export`: the model, or its adapter, and the tokenizer."""
    folder = (config.run_folder / "export").absolute()
    workers.policy.export(folder)
    _add_tokenizer(config, folder)
    return folder


def export_run(run_folder: Path, *, merge: bool, step: int | None, to: Path | None) -> tuple[Path, float]:
    """The folder that was written, and by how much what it says differs from the trained model.

    `step`: of the checkpoint; None takes the newest valid one. Raises what `MISTAKES` names, or ExportError.
    """
    config = saved_config(run_folder)
    saved = _checkpoint(run_folder, step)
    # torch takes seconds to import: mistakes are answered before.
    from workers.exporting import largest_difference, load_checkpoint, load_tuned, write_model

    team = config.team()
    as_adapter = config.tuning.has_adapter and not merge
    folder = to or run_folder / ("export_merged" if config.tuning.has_adapter and merge else "export")
    model = load_tuned(team.model, team.tuning, judges=team.policy_judges, seed=team.seed)
    load_checkpoint(model, saved.path, role="policy")
    write_model(model, folder, as_adapter=as_adapter)
    _add_tokenizer(config, folder)
    return folder, largest_difference(
        model, folder, team.model, team.tuning, as_adapter=as_adapter, judges=team.policy_judges
    )


def _add_tokenizer(config: Config, folder: Path) -> None:
    """With the chat template that the rows were written by, and the padding that the model knows as such."""
    tokenizer = copy.deepcopy(tokenizer_of(config))
    settings = folder / "config.json"
    if settings.is_file():
        padding = json.loads(settings.read_text()).get("pad_token_id")
        if padding is not None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    tokenizer.save_pretrained(folder)


def _checkpoint(run_folder: Path, step: int | None) -> SavedCheckpoint:
    checkpoints = Checkpoints(folder=run_folder / "checkpoints", keep=1)
    saved = checkpoints.newest_valid() if step is None else checkpoints.of_step(step)
    if saved is None:
        raise CheckpointError(f"{run_folder} has no checkpoint to export")
    return saved


def run(argv: Sequence[str]) -> int:
    """The exit code: 0 done, 1 what was written says something else, 2 a mistake of the person's."""
    parser = argparse.ArgumentParser(prog="python -m engine.export", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into its base")
    parser.add_argument("--step", type=int, help="of which checkpoint; the newest valid one otherwise")
    parser.add_argument("--to", type=Path, help="where to; <run>/export or <run>/export_merged otherwise")
    asked = parser.parse_args(argv)
    try:
        folder, difference = export_run(asked.run, merge=asked.merge, step=asked.step, to=asked.to)
    except MISTAKES as mistake:
        print(f"heliostat: {mistake}", file=sys.stderr)
        return 2
    except RunStopped as stopped:
        print(f"heliostat: {stopped}", file=sys.stderr)
        return 1
    print(f"{folder}: loaded again, it says the same (largest difference {difference:.1e})")
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
