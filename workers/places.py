"""Who is on the team and what each of them reserves. Import-light: no torch, no ray."""

from __future__ import annotations

from dataclasses import dataclass

from workers.config import Device, TeamConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One worker's reservation."""

    role: str
    index: int
    """Among the workers of its role."""
    cpus: float
    gpus: float

    @property
    def name(self) -> str:
        return f"{self.role} {self.index}"


def places_for(team: TeamConfig) -> tuple[Place, ...]:
    """Every worker of the team, in the order of their bundles."""
    cluster = team.cluster
    on_gpu = cluster.device is Device.CUDA
    trainer_gpus = cluster.gpus_per_trainer if on_gpu else 0.0
    engine_gpus = cluster.gpus_per_engine if on_gpu else 0.0
    roles = [("policy", team.train.ranks, trainer_gpus)]
    if team.has_critic:
        roles += [("critic", team.train.ranks, trainer_gpus)]
    if team.rollout_workers:
        roles += [("rollout", team.rollout.engines, engine_gpus)]
        roles += [("reward", team.reward.workers, trainer_gpus if team.reward.model else 0.0)]
        if team.reward.judge.model:
            roles += [("judge", 1, team.reward.judge.gpus if on_gpu else 0.0)]
    if team.reference:
        roles += [("reference", 1, trainer_gpus)]
    return tuple(
        Place(role=role, index=index, cpus=cluster.cpus_per_worker, gpus=gpus)
        for role, count, gpus in roles
        for index in range(count)
    )
