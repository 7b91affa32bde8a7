"""What a run can be told: one typed object, composed from conf/ and the command line, and checked before Ray starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from engine import config_help
from engine.algorithms.base import ScoreObjective
from engine.compose import Composed, compose
from engine.config_checks import check, check_for_cluster
from engine.config_error import ConfigError
from engine.model_checks import check_sizes, models_of
from engine.sizes import ModelSizes, sizes_of
from engine.tuning_checks import check_tuning_fits
from workers.config import (
    ClusterConfig,
    CriticConfig,
    ModelConfig,
    Overlong,
    Precision,
    Quantization,
    RewardConfig,
    RolloutConfig,
    TeamConfig,
    TrainConfig,
    TuningConfig,
)

__all__ = ["Bounds", "ChecksConfig", "Config", "ConfigError", "EvaluationConfig", "OnAlarm", "Resume", "RunConfig"]
__all__ += ["cluster_address", "help_text", "load_config", "load_config_for_cluster"]

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
OPEN_SECTIONS = ("algo", "data")
OWN_MODEL = "model=own"


class OnAlarm(Enum):
    """What a sign that something goes wrong, as a hacked reward or memory that rises and rises, leads to."""

    WARN = "warn"
    """It is told, and the run goes on."""
    STOP = "stop"
    """The run stops."""
    OFF = "off"
    """Nobody looks for signs."""


class Resume(Enum):
    """Whether a run goes on where an earlier one of the same name stopped."""

    AUTO = "auto"
    """From the newest valid checkpoint, if there is one."""
    NEVER = "never"
    """Always from the first step."""
    DESPITE_CHANGES = "despite_changes"
    """As auto, also where settings or data are others than those that the checkpoint was saved with."""


class OnFullDisk(Enum):
    """What becomes of a run whose checkpoint does not fit on the disk. The one before it stays."""

    STOP = "stop"
    GO_ON = "go_on"
    """It is told, and tried again when the next one is due."""


class BestIs(Enum):
    """Of a metric."""

    HIGHEST = "highest"
    LOWEST = "lowest"


@dataclass
class RunConfig:
    """The run itself."""

    name: str = ""
    """Empty: <algo>-<model>-<data>, from the chosen options."""
    folder: str = "runs"
    """Where runs are kept; this one is <folder>/<name>."""
    steps: int = 60
    """Batches of rollouts (or of lessons, offline) to learn from."""
    epochs: float = 0.0
    """Times through the training rows; above 0 it takes the place of run.steps."""
    seed: int = 0
    """All randomness is a function of this number."""
    save_every_steps: int = 0
    """Steps between two checkpoints; 0 saves only at the end."""
    keep_checkpoints: int = 2
    """The newest ones; older ones are deleted."""
    keep_best: str = ""
    """A metric as metrics.jsonl names it (held_out/greedy); the checkpoint where it is best stays too. Empty: none."""
    best_is: BestIs = BestIs.HIGHEST
    """Of run.keep_best: highest, or lowest for a loss."""
    on_full_disk: OnFullDisk = OnFullDisk.STOP
    """What a checkpoint that does not fit leads to: stop ends the run, go_on tries again when the next one is due."""
    resume: Resume = Resume.AUTO
    """auto goes on from the newest valid checkpoint of the same run; despite_changes does so under settings or data
    that have changed; never starts over."""
    max_restarts: int = 3
    """Times in a row, without a new checkpoint between, that the run goes on by itself from its newest checkpoint:
    after its own process or a trainer's was killed, or another worker's once more than it may
    (cluster.worker_restarts)."""
    grace_s: float = 30.0
    """Seconds that SIGTERM or Ctrl-C give the run to save and end; then, or at a second signal, it is killed."""
    keep_rollouts_every_steps: int = 10
    """Steps between two files of rollouts, for people and for replay; 0 keeps only the last step's."""
    show_responses_every_steps: int = 10
    """Steps between two times that a step's best and worst response are printed; 0 never prints any."""
    tensorboard: bool = True
    """Curves, beside metrics.jsonl."""

    def is_due(self, step: int, *, every_steps: int) -> bool:
        """Whether something done every so many steps is to be done after step `step` (from 0); the last step counts."""
        done = step + 1
        return done == self.steps or (every_steps > 0 and done % every_steps == 0)


@dataclass
class RenderingConfig:
    """How rows become tokens."""

    chat_template: str = ""
    """A Jinja file that takes the place of the tokenizer's own template; empty: its own. It is exported with the
    model. examples/chat_templates/chatml.jinja writes tools and marks answers."""
    overlong: Overlong = Overlong.ERROR
    """What becomes of a row with more tokens than fit: error names it, drop leaves it out, truncate cuts its end off
    (offline stages only)."""


@dataclass
class EvaluationConfig:
    """How progress is measured, on prompts that are never trained on."""

    prompts: int = 200
    """Held-out prompts, or lessons of an offline stage; 0 turns evaluation off."""
    samples_per_prompt: int = 4
    """Samples behind avg@k and pass@k, beside the greedy answer."""
    every_steps: int = 0
    """0: before the first step and after the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far the rollout engine and the trainer may disagree before a run stops: a disagreement is a bug."""

    logprob_gap_mean: float
    logprob_gap_max: float
    ratio_deviation: float
    kl_at_start: float


DEFAULT_BOUNDS = {
    Precision.FLOAT32: Bounds(logprob_gap_mean=1e-3, logprob_gap_max=5e-2, ratio_deviation=1e-4, kl_at_start=1e-4),
    # A single token may be far off in bfloat16; the mean may not.
    Precision.BFLOAT16: Bounds(logprob_gap_mean=5e-2, logprob_gap_max=10.0, ratio_deviation=0.5, kl_at_start=5e-2),
}
EIGHT_BIT_BOUNDS = Bounds(logprob_gap_mean=0.2, logprob_gap_max=10.0, ratio_deviation=0.5, kl_at_start=5e-2)
"""Of a base in int8, which rounds what it reads too, and sets other numbers apart in another micro-batch; the engine's
dequantized base does neither."""


@dataclass
class ChecksConfig:
    """Bounds on how far engine and trainer may disagree; each 0 takes the precision's default (int8's, on int8)."""

    logprob_gap_mean: float = 0.0
    """Mean absolute difference between the engine's and the trainer's log-probs of the sampled tokens."""
    logprob_gap_max: float = 0.0
    """Its largest value."""
    ratio_deviation: float = 0.0
    """How far the first update's policy ratio may be from 1."""
    kl_at_start: float = 0.0
    """How far the policy may be from its reference before the first update."""
    max_skipped_steps: int = 3
    """Steps in a row that may be skipped for a gradient that is not finite; one more stops the run."""
    alarms: OnAlarm = OnAlarm.WARN
    """Signs that the policy learns to please the reward in another way than was meant (engine/alarms.py lists them):
    warn tells of them, stop ends the run at the first, off does not look."""

    def bounds(self, precision: Precision, quantization: Quantization = Quantization.NONE) -> Bounds:
        """Every bound as a number above 0."""
        default = EIGHT_BIT_BOUNDS if quantization is Quantization.INT8 else DEFAULT_BOUNDS[precision]
        return Bounds(
            logprob_gap_mean=self.logprob_gap_mean or default.logprob_gap_mean,
            logprob_gap_max=self.logprob_gap_max or default.logprob_gap_max,
            ratio_deviation=self.ratio_deviation or default.ratio_deviation,
            kl_at_start=self.kl_at_start or default.kl_at_start,
        )


@dataclass
class Config:
    """A whole run. `algo` and `data` are open: the chosen file's `_target_` says which dataclass they are."""

    algo: Any
    """An `engine.algorithms.base.Algorithm`, or an offline objective."""
    data: Any
    """An `engine.data.base.OnlineData` or `OfflineData`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sizes: ModelSizes = field(default_factory=ModelSizes)
    """Of the model at `model.path`."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def run_folder(self) -> Path:
        return Path(self.run.folder) / self.run.name

    @property
    def bounds(self) -> Bounds:
        return self.checks.bounds(self.model.precision, self.tuning.quantization)

    def for_rows(self, rows: int) -> Config:
        """The same with its number of steps counted, where epochs are what was asked for."""
        if not self.run.epochs:
            return self
        a_step = self.rollout.prompts_per_step if self.algo.online else self.train.examples_per_step
        return replace(self, run=replace(self.run, steps=max(1, math.ceil(self.run.epochs * rows / a_step))))

    def team(self) -> TeamConfig:
        """The part of it that the workers are told. They have working directories of their own: paths are absolute."""
        algo, train, steps = self.algo, self.train, self.run.steps
        updates = train.updates_per_step * (train.epochs_per_step if algo.online else 1)
        policy_steps = sum(algo.trains_policy(step) for step in range(steps)) if algo.online else steps
        return TeamConfig(
            model=replace(self.model, path=_from_anywhere(self.model.path)),
            train=train,
            critic=replace(self.critic, path=_from_anywhere(self.critic.path)),
            tuning=replace(self.tuning, adapters=[_from_anywhere(path) for path in self.tuning.adapters]),
            rollout=self.rollout,
            reward=replace(
                self.reward,
                model=_from_anywhere(self.reward.model),
                judge=replace(self.reward.judge, model=_from_anywhere(self.reward.judge.model)),
            ),
            cluster=self.cluster,
            seed=self.run.seed,
            policy_updates=policy_steps * updates,
            critic_updates=steps * updates,
            log_folder=str((self.run_folder / "logs").absolute()),
            rollout_workers=algo.online,
            reference=algo.online and algo.needs.reference and not self.tuning.is_own_reference,
            reference_follows=algo.online and algo.reference_refresh.every_steps > 0,
            has_critic=algo.online and algo.needs.critic,
            policy_judges=isinstance(algo, ScoreObjective),
        )


def load_config(argv: Sequence[str]) -> Config:
    """The run that `argv` asks for, or a `ConfigError` that says why it cannot be."""
    return _load(argv, check)


def load_config_for_cluster(argv: Sequence[str]) -> Config:
    """The same for a run that other machines do: what only they hold is not looked for here."""
    return _load(argv, check_for_cluster)


def cluster_address(argv: Sequence[str]) -> str:
    """`cluster.address` as typed or as a file says it; empty when neither does. Nothing else of the run is checked."""
    return compose(argv, Config, conf=CONF, open_sections=OPEN_SECTIONS).config.cluster.address


def _load(argv: Sequence[str], checked: Callable[[Config], None]) -> Config:
    composed = compose(_of_own_model(argv), Config, conf=CONF, open_sections=OPEN_SECTIONS)
    config = composed.config
    if not config.run.name:
        config.run.name = "-".join(composed.choices[group] for group in ("algo", "model", "data"))
    config.model.path = _found_from_anywhere(config.model.path)
    if config.rendering.chat_template:
        config.rendering.chat_template = _found_from_anywhere(config.rendering.chat_template)
    if config.critic.path:
        config.critic.path = _found_from_anywhere(config.critic.path)
    if config.reward.model:
        config.reward.model = _found_from_anywhere(config.reward.model)
    if config.reward.judge.model:
        config.reward.judge.model = _found_from_anywhere(config.reward.judge.model)
    try:
        checked(config)
        config.sizes = _sizes_of_path(composed)
        check_tuning_fits(config, config.sizes)
        for key, path in models_of(config).items():
            check_sizes(config, key, config.sizes if key == "model.path" else sizes_of(path, CONF, key=key))
    except ConfigError as error:
        raise composed.sources.explain(error) from None
    return config


def _of_own_model(argv: Sequence[str]) -> Sequence[str]:
    """A path without a model's name means a model of one's own: none of the default model's settings are meant."""
    keys = {text.partition("=")[0].lstrip("+") for text in argv}
    return [OWN_MODEL, *argv] if "model.path" in keys and not keys & {"model", "experiment"} else argv


def help_text() -> str:
    """What `--help` prints."""
    return config_help.describe(Config, conf=CONF, open_sections=OPEN_SECTIONS)


def _sizes_of_path(composed: Composed[Config]) -> ModelSizes:
    """A folder tells its own sizes. Those of the YAML hold for the path that stands beside them, not for another."""
    config, sources = composed.config, composed.sources
    is_folder = Path(config.model.path).is_dir()
    if not is_folder and (sources.is_typed("sizes") or sources.file_of("model.path") == sources.file_of("sizes") != ""):
        return config.sizes
    return sizes_of(config.model.path, CONF, key="model.path")


def _from_anywhere(path: str) -> str:
    """A folder's absolute path; a hub id, or nothing, as it is."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


def _found_from_anywhere(path: str) -> str:
    """What a person types is relative to where they are; what the repository ships is found from every folder."""
    shipped = REPOSITORY / path
    return str(shipped) if shipped.exists() and not Path(path).exists() else path
