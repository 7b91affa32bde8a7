"""The whole team: started together, buried together, and the three things they do as one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from rewards.spec import RewardSpec
from workers.adapters import served_rank
from workers.canary import Canary
from workers.config import TeamConfig, TuningConfig
from workers.critic_worker import CriticWorker
from workers.failures import Roster
from workers.frozen_worker import FrozenWorker
from workers.group import (
    CriticGroup,
    Hosting,
    PolicyGroup,
    ReferenceGroup,
    RewardGroup,
    RolloutGroup,
    trainers_death_first,
)
from workers.judge_group import JudgeServerGroup
from workers.judges import make_judge_server, make_judges
from workers.meeting import MeetingPoint, meeting_point
from workers.placement import connected, reserved
from workers.places import places_for
from workers.policy_worker import PolicyWorker
from workers.process_settings import process_settings
from workers.records import Metrics, WeightManifest, WeightReceipt
from workers.reward_model_worker import RewardModelWorker
from workers.rollout_actor import RolloutActor
from workers.starting import Announce, TookS, await_all
from workers.telling import TellLines, telling_on_signal
from workers.train_worker import RankInfo, TrainerSetup
from workers.vitals import RollCall
from workers.weight_sync import WeightSyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """One version of the weights, served by every rollout engine."""

    manifest: WeightManifest
    """Where they lie until the next version is published."""
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Everybody who works on a run; a role that the run does not need has an empty group."""

    policy: PolicyGroup
    critic: CriticGroup
    reference: ReferenceGroup
    rollout: RolloutGroup
    reward: RewardGroup
    judge: JudgeServerGroup
    """The language model that reward functions ask."""
    roll_call: RollCall
    shares_devices: bool
    """Whether trainers and rollout engines live on the same GPUs and take turns."""

    @contextmanager
    def generating(self) -> Iterator[None]:
        """The rollout engines have the devices. With devices of their own, nothing to do.

        Raises, at the end, what ended the judge's server, where functions ask one.
        """
        try:
            if self.shares_devices:
                self.policy.offload()
                self.critic.offload()
            with self.judge.needed():
                yield
        except KeyboardInterrupt:
            self._give_trainers_devices()  # whoever is stopped here saves next
            raise

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The trainers have the devices, until weights are published. With devices of their own, nothing to do."""
        self._give_trainers_devices()
        yield

    def _give_trainers_devices(self) -> None:
        if self.shares_devices:
            self.rollout.sleep()
            self.policy.reload()
            self.critic.reload()

    def vitals(self) -> Metrics:
        """The most memory that each verb of each role took since this was last asked, and how many workers were
        replaced, which it announces."""
        groups = (self.policy, self.critic, self.reference, self.rollout, self.reward)
        return self.roll_call.metrics([asked for group in groups for asked in group.vitals()])

    def publish_weights(self, *, version: int) -> SyncReport:
        """Every rollout engine serves the policy's weights, as `version`, from now on.

        Raises WeightSyncError unless each engine answers with this version and this checksum.
        """
        if self.shares_devices:
            self.rollout.wake()
        manifest = self.policy.publish(version)
        expected = WeightReceipt(version=version, checksum=manifest.checksum, num_bytes=manifest.num_bytes)
        for index, receipt in enumerate(self.rollout.load_weights(manifest)):
            if receipt != expected:
                raise WeightSyncError(f"rollout {index} answered {receipt}, the trainer sent {expected}")
        return SyncReport(manifest=manifest, num_bytes=expected.num_bytes)


@contextmanager
def start_workers(
    team: TeamConfig,
    rewards: Sequence[RewardSpec],
    canaries: Sequence[Canary],
    *,
    announce: Announce,
    started: TookS,
    tell: TellLines,
) -> Iterator[Workers]:
    """Ray, a bundle for everybody, and all models loaded side by side.

    However the block is left (an error, Ctrl-C, half-way through the start) no worker stays behind. `announce` is told
    in words what has been started, and later who was replaced; `started` the seconds that Ray took and then each role;
    `tell`, when a signal asks, what the run waits for. `rewards` is empty for a run that judges nothing, or by a reward
    model alone.
    """
    places, began = places_for(team), time.monotonic()
    roster = Roster(Path(team.log_folder).resolve())
    announce("starting Ray")
    with (
        connected(team.cluster, places),
        telling_on_signal(roster, tell),
        reserved(places, timeout_s=team.cluster.placement_timeout_s) as placement,
        meeting_point(ray.util.get_node_ip_address()) as meeting,
    ):
        hosting = Hosting(
            placement=placement,
            places=places,
            environment=process_settings(team),
            roster=roster,
            call_timeout_s=team.cluster.call_timeout_s,
        )
        took_s, timeout_s = {"ray": time.monotonic() - began}, team.cluster.startup_timeout_s
        # The functions are tried where they will run, and the judge that they ask is up by then.
        judge = make_judge_server(team, hosting)
        took_s |= await_all([judge], roster, timeout_s=timeout_s, announce=announce)
        reward = make_judges(team, rewards, canaries, judge, hosting)
        roll_call = RollCall(announce, roster.log_path)
        workers = _make_workers(team, reward, judge, roll_call, hosting, meeting)
        groups = [reward, workers.policy, workers.critic, workers.rollout, workers.reference]
        took_s |= await_all(groups, roster, timeout_s=timeout_s, announce=announce)
        started(took_s)
        with trainers_death_first(workers.policy, workers.critic):
            yield workers


def policy_setup(team: TeamConfig) -> TrainerSetup:
    """What every rank of the policy is built from."""
    return TrainerSetup(
        model=team.model,
        train=team.train,
        device=team.cluster.device,
        seed=team.seed,
        total_updates=team.policy_updates,
        tuning=team.tuning,
    )


def critic_setup(team: TeamConfig) -> TrainerSetup:
    """The same of the critic: what is not said of it is as for the policy."""
    critic = team.critic
    return replace(
        policy_setup(team),
        model=replace(team.model, path=critic.path or team.model.path),
        train=replace(team.train, learning_rate=critic.learning_rate, warmup_updates=critic.warmup_updates),
        total_updates=team.critic_updates,
        tuning=_of_critic(team),
    )


def _make_workers(
    team: TeamConfig,
    reward: RewardGroup,
    judge: JudgeServerGroup,
    roll_call: RollCall,
    hosting: Hosting,
    meeting: MeetingPoint,
) -> Workers:
    policy, critic = policy_setup(team), critic_setup(team)

    def ranks(role: str) -> list[RankInfo]:
        size = team.train.ranks
        return [RankInfo(role=role, rank=rank, world_size=size, meeting=meeting) for rank in range(size)]

    engines = team.rollout.engines if team.rollout_workers else 0
    own_policy = PolicyGroup(
        RewardModelWorker if team.policy_judges else PolicyWorker,
        hosting,
        role="policy",
        arguments=[(policy, rank) for rank in ranks("policy")],
    )
    adapter_rank = served_rank(team.tuning)
    return Workers(
        rollout=RolloutGroup(
            RolloutActor,
            hosting,
            arguments=[
                (team.model, team.rollout, team.cluster, team.seed, adapter_rank, own_policy.publisher)
                for _ in range(engines)
            ],
            restarts=_engine_restarts(team),
        ),
        policy=own_policy,
        critic=CriticGroup(
            CriticWorker,
            hosting,
            role="critic",
            arguments=[(critic, rank) for rank in ranks("critic") if team.has_critic],
        ),
        reference=_make_reference(team, hosting),
        reward=reward,
        judge=judge,
        roll_call=roll_call,
        shares_devices=team.shares_devices,
    )


def _make_reference(team: TeamConfig, hosting: Hosting) -> ReferenceGroup:
    arguments = (
        team.model,
        team.cluster.device,
        team.seed,
        team.train.tokens_per_micro_batch,
        team.train.packing,
        team.tuning.adapters,
    )
    return ReferenceGroup(
        FrozenWorker,
        hosting,
        role="reference",
        arguments=[arguments] * int(team.reference),
        restarts=0 if team.reference_follows else team.cluster.worker_restarts,
    )


def _engine_restarts(team: TeamConfig) -> int:
    """None where a new engine could not be what the old one was: its memory is the trainer's for half of the time, or
    the base that its adapter stands on was sent once, long ago."""
    sent_once = served_rank(team.tuning) > 0 and team.tuning.changes_base
    return 0 if team.shares_devices or sent_once else team.cluster.worker_restarts


def _of_critic(team: TeamConfig) -> TuningConfig:
    """As the policy is tuned. An adapter of its own is always a new one, and another model has no earlier ones."""
    return replace(team.tuning, adapters=[] if team.critic.path else team.tuning.adapters, continue_last=False)
