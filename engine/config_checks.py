"""What no run can be: checks over several settings at once, each ending in what to set instead."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from engine.algorithms.base import Algorithm, Objective
from engine.config_error import ConfigError
from engine.model_checks import check_model, models_of
from engine.reward_checks import check_judge, check_judge_model, check_reward, check_reward_model
from engine.rows_checks import check_rows
from engine.tuning_checks import check_earlier_adapters, check_tuning
from workers.config import OldLogprobs, Precision, Weights

if TYPE_CHECKING:
    from engine.config import Config

ABOVE_ZERO = (
    "model.context_length",
    "train.ranks",
    "train.eps",
    "train.updates_per_step",
    "train.epochs_per_step",
    "train.examples_per_step",
    "train.tokens_per_micro_batch",
    "rollout.engines",
    "rollout.prompts_per_step",
    "rollout.responses_per_prompt",
    "rollout.max_response_tokens",
    "rollout.max_running",
    "rollout.kv_cache_gib",
    "rollout.gpu_memory_share",
    "reward.workers",
    "reward.processes",
    "reward.timeout_s",
    "reward.judge.context_length",
    "reward.judge.max_reply_tokens",
    "reward.judge.max_running",
    "reward.judge.gpus",
    "reward.judge.gpu_memory_share",
    "reward.judge.kv_cache_gib",
    "evaluation.samples_per_prompt",
    "cluster.gpus_per_trainer",
    "cluster.gpus_per_engine",
    "cluster.cpus_per_worker",
    "cluster.placement_timeout_s",
    "cluster.startup_timeout_s",
    "cluster.call_timeout_s",
    "run.steps",
    "run.keep_checkpoints",
)
FROM_ZERO = (
    "train.learning_rate",
    "train.weight_decay",
    "train.max_grad_norm",
    "train.warmup_updates",
    "train.activations_gib",
    "critic.learning_rate",
    "critic.warmup_updates",
    "cluster.threads_per_worker",
    "cluster.worker_restarts",
    "rollout.max_staleness",
    "reward.memory_gib",
    "evaluation.prompts",
    "evaluation.every_steps",
    "checks.logprob_gap_mean",
    "checks.logprob_gap_max",
    "checks.ratio_deviation",
    "checks.kl_at_start",
    "checks.max_skipped_steps",
    "run.epochs",
    "run.save_every_steps",
    "run.max_restarts",
    "run.keep_rollouts_every_steps",
    "run.show_responses_every_steps",
    "run.seed",
)
SHARES = (
    "train.final_learning_rate_share",
    "train.warmup_share",
    "rollout.gpu_memory_share",
    "reward.max_failure_fraction",
    "reward.judge.gpu_memory_share",
)


def check(config: Config) -> None:
    """Raises a `ConfigError` for the first thing that cannot be."""
    _check_settings(config)
    _check_address(config)
    for key in models_of(config):
        check_model(config, key)
    check_reward_model(config)
    check_judge_model(config)
    check_earlier_adapters(config)


def check_for_cluster(config: Config) -> None:
    """The same for a run that is sent to a cluster, whose machines may hold a model that this one does not."""
    _check_settings(config)
    _check_lasting_folder(config)
    for key, path in models_of(config).items():
        if Path(path).exists() or not Path(path).is_absolute():
            check_model(config, key)


def _check_settings(config: Config) -> None:
    _check_algorithm(config)
    _check_numbers(config)
    _check_model(config)
    _check_run(config)
    check_rows(config)
    check_tuning(config)
    if config.algo.online:
        _check_reference(config)
        _check_rollouts(config)
        _check_overlap(config)
        _check_batch(config)


def _check_algorithm(config: Config) -> None:
    if not isinstance(config.algo, (Algorithm, Objective)):
        raise ConfigError(
            f"algo is a {type(config.algo).__name__}, which is no algorithm.",
            keys=("algo._target_", "algo"),
            advice="Give a subclass of engine.algorithms.base.Algorithm or Objective.",
        )


def _check_numbers(config: Config) -> None:
    for key in ABOVE_ZERO:
        number = _value(config, key)
        if not (math.isfinite(number) and number > 0):
            raise ConfigError(f"{key} is {number}.", keys=(key,), advice="Set a number above 0.")
    for key in FROM_ZERO:
        number = _value(config, key)
        if not (math.isfinite(number) and number >= 0):
            raise ConfigError(f"{key} is {number}.", keys=(key,), advice="Set 0 or more.")
    for key in SHARES:
        number = _value(config, key)
        if not 0 <= number <= 1:
            raise ConfigError(f"{key} is {number}, and a share is at most 1.", keys=(key,), advice="Set 0 to 1.")
    betas, zero_stage = config.train.betas, config.train.zero_stage
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"train.betas is {betas}.", keys=("train.betas",), advice="Set two numbers in [0, 1).")
    if zero_stage not in range(4):
        raise ConfigError(f"train.zero_stage is {zero_stage}.", keys=("train.zero_stage",), advice="Set 0, 1, 2 or 3.")


def _value(config: Config, key: str) -> float:
    *sections, name = key.split(".")
    return getattr(functools.reduce(getattr, sections, config), name)


def _check_model(config: Config) -> None:
    model, zero_stage = config.model, config.train.zero_stage
    if model.precision is Precision.BFLOAT16 and zero_stage == 0:
        raise ConfigError(
            "model.precision is bfloat16 and train.zero_stage is 0: the optimizer would have no float32 weights.",
            keys=("model.precision", "train.zero_stage"),
            advice="Set train.zero_stage=1.",
        )
    if config.team().shares_devices and zero_stage == 0:
        raise ConfigError(
            "trainer and rollout engine share GPUs, and train.zero_stage is 0: DeepSpeed could not make room.",
            keys=("cluster.device", "cluster.gpus_per_trainer", "cluster.gpus_per_engine", "train.zero_stage"),
            advice="Set train.zero_stage=1, or give both sides whole GPUs.",
        )
    if model.weights is Weights.RANDOM and config.algo.online:
        raise ConfigError(
            "model.weights is random, and a rollout engine needs a trained model to sample from.",
            keys=("model.weights", "algo"),
            advice="Train it first (algo=sft), then set model.path to that run's export.",
        )


def _check_run(config: Config) -> None:
    name = config.run.name
    if name in (".", "..") or "/" in name or "\\" in name:
        raise ConfigError(
            f"run.name is {name}, and a name is one folder.",
            keys=("run.name",),
            advice="Set run.folder to where runs are kept, and run.name without slashes.",
        )


def _check_address(config: Config) -> None:
    name = "cluster.address" if config.cluster.address else "RAY_ADDRESS"
    address = config.cluster.address or os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{name} is {address}: a job server, and a run joins a cluster itself.",
            keys=("cluster.address",),
            advice="`python -m engine.submit` with the same settings sends the run there; "
            "to join, give <head node>:6379, or auto on a machine of the cluster.",
        )


def _check_lasting_folder(config: Config) -> None:
    if not Path(config.run.folder).is_absolute():
        raise ConfigError(
            f"run.folder is {config.run.folder}: on a cluster that is a temporary folder of the job's, and the run "
            "would be lost with it.",
            keys=("run.folder",),
            advice="Set run.folder to an absolute path on storage that every machine of the cluster sees.",
        )


def _check_reference(config: Config) -> None:
    every_steps = config.algo.reference_refresh.every_steps
    if every_steps and not config.algo.needs.reference:
        raise ConfigError(
            f"algo.reference_refresh.every_steps is {every_steps}, and {type(config.algo).__name__} has no reference "
            "here that could follow the policy.",
            keys=("algo.reference_refresh.every_steps", "algo.kl_coef"),
            advice="Set algo.kl_coef above 0, or algo.reference_refresh.every_steps=0.",
        )


def _check_rollouts(config: Config) -> None:
    rollout = config.rollout
    if rollout.top_p != 1 or rollout.top_k != 0:
        raise ConfigError(
            f"rollout.top_p is {rollout.top_p} and rollout.top_k is {rollout.top_k}: the engine's log-probs would be "
            "those of another distribution than the trainer's.",
            keys=("rollout.top_p", "rollout.top_k"),
            advice="Set rollout.top_p=1 and rollout.top_k=0; rollout.temperature is safe to change.",
        )
    if not (math.isfinite(rollout.temperature) and rollout.temperature > 0):
        raise ConfigError(
            f"rollout.temperature is {rollout.temperature}: without chance all responses to a prompt are the same.",
            keys=("rollout.temperature",),
            advice="Set a temperature above 0, such as 1.",
        )
    if rollout.max_response_tokens >= config.model.context_length:
        raise ConfigError(
            f"rollout.max_response_tokens ({rollout.max_response_tokens}) leaves no room for a prompt in "
            f"model.context_length ({config.model.context_length}).",
            keys=("rollout.max_response_tokens", "model.context_length"),
            advice="Set model.context_length to the longest prompt and the longest response together.",
        )
    check_reward(config)
    check_judge(config)


def _check_overlap(config: Config) -> None:
    """What rollouts of older weights need, and what cannot be had beside them."""
    rollout, staleness = config.rollout, config.rollout.max_staleness
    if not (math.isfinite(rollout.oversampling) and rollout.oversampling >= 1):
        raise ConfigError(
            f"rollout.oversampling is {rollout.oversampling}: a step asks for at least what it learns from.",
            keys=("rollout.oversampling",),
            advice="Set 1 (nothing is cut off) or more, such as 1.25.",
        )
    if rollout.oversampling > 1 and staleness:
        raise ConfigError(
            f"rollout.oversampling is {rollout.oversampling} and rollout.max_staleness is {staleness}: a late group "
            "goes on beside the next step, and nothing is cut off.",
            keys=("rollout.oversampling", "rollout.max_staleness"),
            advice="Set one of them: rollout.max_staleness=0, or rollout.oversampling=1.",
        )
    if staleness and config.team().shares_devices:
        raise ConfigError(
            f"rollout.max_staleness is {staleness}, and trainer and rollout engine share GPUs: they take turns, so "
            "nothing is decoded while the trainer learns.",
            keys=(
                "rollout.max_staleness",
                "cluster.device",
                "cluster.gpus_per_trainer",
                "cluster.gpus_per_engine",
            ),
            advice="Give both sides whole GPUs, or set rollout.max_staleness=0.",
        )
    if staleness and not config.algo.corrects and config.train.old_logprobs is not OldLogprobs.ROLLOUT:
        raise ConfigError(
            f"rollout.max_staleness is {staleness}, and nothing corrects for what older weights sampled: "
            "algo.correction.weight is none.",
            keys=("rollout.max_staleness", "algo.correction.weight", "train.old_logprobs"),
            advice="Set algo.correction.weight=token_tis, or train.old_logprobs=rollout, whose ratio spans both.",
        )


def _check_batch(config: Config) -> None:
    rollout, updates = config.rollout, config.train.updates_per_step
    if rollout.prompts_per_step % updates:
        below = rollout.prompts_per_step - rollout.prompts_per_step % updates
        raise ConfigError(
            f"rollout.prompts_per_step ({rollout.prompts_per_step}) cannot be split into train.updates_per_step "
            f"({updates}) equal updates of whole groups.",
            keys=("rollout.prompts_per_step", "train.updates_per_step"),
            advice=f"Set rollout.prompts_per_step={below or updates}, or a train.updates_per_step that divides it.",
        )
    smallest = config.algo.min_group_size
    if rollout.responses_per_prompt < smallest:
        raise ConfigError(
            f"{type(config.algo).__name__} compares the responses to one prompt: it needs {smallest} of them, and "
            f"rollout.responses_per_prompt is {rollout.responses_per_prompt}.",
            keys=("rollout.responses_per_prompt",),
            advice=f"Set rollout.responses_per_prompt={max(smallest, 8)}.",
        )
