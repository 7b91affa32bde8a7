"""What a step does with judged groups: deal them out, ask the other models, credit, update, publish. No engine is
needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from engine.config import Config
from engine.dealing import WorkModel
from engine.experience import Assignment, advantages, assign
from engine.group_files import Name
from engine.invariants import check_tokens
from engine.metrics import of_update
from engine.rollout_stream import TakenGroup
from workers.records import AlgorithmState, Metrics
from workers.team import SyncReport, Workers


def deal_out(groups: Sequence[TakenGroup], config: Config) -> Assignment:
    """Which rank learns from which response, and for what reward."""
    return assign(
        groups,
        config.algo,
        ranks=config.train.ranks,
        updates_per_step=config.train.updates_per_step,
        horizon=config.rollout.max_response_tokens,
        work=WorkModel.of(config.sizes, shares_prompts=config.train.packing),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What frozen and learning models said of a batch before its first update: references, one a rank."""

    reference: Sequence[ray.ObjectRef]
    critic: Sequence[ray.ObjectRef]


def ask_models(batch: Assignment, config: Config, workers: Workers) -> Said:
    return Said(
        reference=workers.reference.outputs(batch.shares, temperature=config.rollout.temperature, groups=batch.groups),
        critic=workers.critic.values(batch.shares, groups=batch.groups),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """What each response is worth, and then each of its tokens."""

    rows: Sequence[ray.ObjectRef]
    """What a critic has to learn from it."""
    advantages: Mapping[Name, float]
    """Of the responses that are learned from; empty where credit is given token by token."""
    metrics: Metrics


def credit(batch: Assignment, said: Said, config: Config, state: AlgorithmState, workers: Workers) -> Credited:
    divergence = workers.policy.look(
        batch.shares,
        config.algo,
        temperature=config.rollout.temperature,
        reference=said.reference,
        critic=said.critic,
        groups=batch.groups,
    )
    own, metrics = advantages(batch, config.algo, state, divergence=divergence)
    names = [[(row.draw, row.sample) for update in share for row in update.rows] for share in batch.shares]
    worth = {name: float(one) for rank in zip(names, own, strict=True) for name, one in zip(*rank, strict=True)}
    return Credited(
        rows=workers.policy.credit(own, config.algo, state),
        advantages={} if config.algo.credits_tokens else worth,
        metrics=metrics,
    )


def update(
    batch: Assignment,
    credited: Sequence[ray.ObjectRef],
    config: Config,
    state: AlgorithmState,
    workers: Workers,
    *,
    step: int,
) -> Metrics:
    """Policy and critic learn side by side, on the ranks that own the rows."""
    announced = batch.action_tokens * config.train.epochs_per_step
    of_critic = workers.critic.update(config.algo, credited)
    of_policy = workers.policy.update(config.algo, state) if config.algo.trains_policy(step) else []
    metrics: Metrics = {"skipped_updates": 0.0}
    for name, group, refs in (("", workers.policy, of_policy), ("critic/", workers.critic, of_critic)):
        if refs:
            reports = group.wait(refs, verb="update")
            check_tokens(reports, announced=announced)
            metrics |= {f"{name}{key}": value for key, value in of_update(reports).items()}
    return metrics


def publish(config: Config, workers: Workers, *, step: int) -> SyncReport:
    """Rollout engines, and a reference that follows, have the policy's weights after step `step` (from 0)."""
    published, refresh = workers.publish_weights(version=step + 1), config.algo.reference_refresh
    if refresh.is_due(step):
        workers.reference.follow(published.manifest, share=refresh.share)
    return published
