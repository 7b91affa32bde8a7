"""What it takes to do a step of a run again: its settings, the checkpoint before it, the rollouts from there on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.changed_settings import keys_of
from engine.checkpoint import CheckpointError, Checkpoints, CheckpointState, step_of
from engine.config import Config, ConfigError
from engine.group_files import JudgedGroup
from engine.model_checks import check_model, models_of
from engine.resume import deciding_settings
from engine.rollout_files import read_rollouts, rollouts_of
from engine.saved_config import saved_config
from workers.records import AlgorithmState

DUMP = re.compile(r"step_(\d{6,})\.(jsonl|safetensors)")
OF_THIS_PLACE = ("cluster.", "train.ranks", "model.path", "critic.path")
"""Settings that say where a step is done, and not what it does: they hold from the start."""
OF_THE_STEP = ("algo", "train.", "critic.")
"""Settings that hold for the step that is asked for alone."""
OF_THE_CHECKPOINT = ("train.zero_stage",)
"""Settings that say how it was cut into files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A run after some of its steps."""

    step: int
    """Steps done."""
    folder: Path | None
    """Where its models are saved; None where they are as the run began."""
    algorithm: AlgorithmState


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a step is done again; all that it takes is there."""

    step: int
    """From 1."""
    config: Config
    """As the run was."""
    asked: Config
    """As the step is to be done."""
    changes: tuple[str, ...]
    """What was typed to make them differ; empty where they do not."""
    start: Standing
    remarks: tuple[str, ...]
    """For people."""

    @property
    def run_folder(self) -> Path:
        return self.config.run_folder


def plan_replay(dump: Path, argv: Sequence[str]) -> Plan:
    """`dump`: a step's rollouts, in the folder of their run. `argv`: settings, as they are typed for a run.

    Raises ConfigError, CheckpointError or NotGroups, for people.
    """
    folder, step = _run_and_step(dump)
    typed = keys_of(argv)
    _refuse_others(typed)
    here = [text for key, text in typed.items() if key.startswith(OF_THIS_PLACE)]
    changes = [text for text in typed.values() if text not in here]
    config, asked = (_as_it_lies(saved_config(folder, own), folder) for own in (here, [*here, *changes]))
    for own in (config, asked):
        _refuse_offline(own)
    for key in ("model.path", "critic.path"):
        if key in models_of(asked):
            check_model(asked, key)
    start, remarks = _newest_before(step, config)
    _refuse_gaps(folder, after=start.step, upto=step)
    _refuse_without_greedy(asked, read_rollouts(folder, step))
    return Plan(
        step=step,
        config=config,
        asked=asked,
        changes=tuple(changes) if asked != config else (),
        start=start,
        remarks=remarks,
    )


def _run_and_step(dump: Path) -> tuple[Path, int]:
    named = DUMP.fullmatch(dump.name)
    if named is None or not dump.is_file():
        raise ConfigError(
            f"{dump} {'is not the rollouts of a step' if dump.exists() else 'is not there'}.",
            advice="Give what a run kept of a step, such as runs/grpo-nano-arithmetic/rollouts/step_000010.jsonl.",
        )
    folder, step = dump.absolute().parent.parent, int(named[1])
    if rollouts_of(folder, step).parent != dump.absolute().parent:
        raise ConfigError(
            f"{dump} lies in no run's folder.",
            advice="A step is done again where its run's config.yaml and checkpoints are.",
        )
    return folder, step


def _refuse_others(typed: Iterable[str]) -> None:
    for key in typed:
        if key in OF_THE_CHECKPOINT:
            raise ConfigError(
                f"{key} is how the checkpoint was cut into files: another one cannot read it.",
                keys=(key,),
                advice="Leave it out, or start a run of its own.",
            )
        if not key.startswith((*OF_THIS_PLACE, *OF_THE_STEP)):
            raise ConfigError(
                f"{key} is not what a step learns by: what was sampled and judged is there already.",
                keys=(key,),
                advice="Set keys of algo, train and critic, or (where it is done) of cluster.",
            )


def _as_it_lies(config: Config, folder: Path) -> Config:
    """A folder may have been moved since its run, and a run's place may be relative to another one."""
    return replace(config, run=replace(config.run, folder=str(folder.parent), name=folder.name))


def _refuse_offline(config: Config) -> None:
    if not config.algo.online:
        raise ConfigError(
            f"{type(config.algo).__name__} learns from a data set, and not from rollouts.",
            keys=("algo",),
            advice="Choose an online algorithm, such as algo=grpo.",
        )


def _newest_before(step: int, config: Config) -> tuple[Standing, tuple[str, ...]]:
    """Where to start for this step (from 1), and what a person should know of that."""
    checkpoints, remarks = Checkpoints(folder=config.run_folder / "checkpoints", keep=1), []
    for path in checkpoints.folders():
        if step_of(path) >= step:
            continue
        try:
            saved = checkpoints.of_step(step_of(path))
        except CheckpointError as damage:
            remarks.append(f"passed over: {damage}")
            continue
        remarks += _other_settings(saved.state, config)
        return Standing(step=saved.step, folder=saved.path, algorithm=saved.state.algorithm), tuple(remarks)
    return Standing(step=0, folder=None, algorithm=config.algo.initial_state()), tuple(remarks)


def _other_settings(state: CheckpointState, config: Config) -> list[str]:
    now = deciding_settings(config)
    keys = sorted(key for key in now.keys() | state.config.keys() if now.get(key) != state.config.get(key))
    others = [key for key in keys if not key.startswith(OF_THIS_PLACE)]
    if not others:
        return []
    return [f"config.yaml is of a later part of the run: the checkpoint had another {', '.join(others)}"]


def _refuse_gaps(folder: Path, *, after: int, upto: int) -> None:
    missing = [step for step in range(after + 1, upto + 1) if not rollouts_of(folder, step).is_file()]
    if missing:
        begins = f"the checkpoint of step {after} is the newest before it" if after else "no checkpoint is before it"
        raise ConfigError(
            f"step {upto} cannot be done again: {begins}, and the rollouts of step {missing[0]} were not kept"
            + (f" (nor those of {len(missing) - 1} more)." if missing[1:] else "."),
            advice="A run that is to be replayed keeps them all: run.keep_rollouts_every_steps=1. Of this one, choose "
            "a step that comes right after a checkpoint.",
        )


def _refuse_without_greedy(config: Config, groups: Sequence[JudgedGroup]) -> None:
    learned_from = [judged.group for judged in groups if judged.dropped is None]
    if config.algo.needs.greedy and any(group.greedy is None for group in learned_from):
        raise ConfigError(
            f"{type(config.algo).__name__} compares with a response without chance, and the run asked for none.",
            keys=("algo",),
            advice="Choose another algorithm.",
        )
