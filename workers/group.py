"""N copies of one actor, addressed as one, with the verbs of their role.

A worker becomes an actor here, where its bundle is known. Every wait has a deadline and says who waits for whom.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from workers.actor_class import as_actor
from workers.failures import Roster
from workers.file_entry import FileEntry
from workers.lessons import Lesson, Objective, Share
from workers.placement import Place
from workers.process_settings import WAIT_ASLEEP
from workers.records import (
    AlgorithmState,
    GroupRequest,
    PolicyObjective,
    Totals,
    Update,
    WeightManifest,
    WeightReceipt,
)
from workers.stopped import WorkerDied
from workers.tally import UpdateReport
from workers.vitals import Asked

DEATH_KNOWN_WITHIN_S = 5.0
MOST_GROUPS_AT_ONCE = 1_000_000
"""In one rollout engine: as many as are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """How actors are made: where, with which environment, and who knows them by name."""

    placement: PlacementGroup
    places: tuple[Place, ...]
    environment: Mapping[str, str]
    roster: Roster
    call_timeout_s: float


class WorkerGroup:
    """The copies of one role. A group may be empty: then its verbs do nothing."""

    own_environment: ClassVar[Mapping[str, str]] = {}
    """Of every copy, whoever makes the group."""

    def __init__(
        self,
        worker_class: type,
        hosting: Hosting,
        *,
        role: str,
        arguments: Sequence[tuple[Any, ...]],
        secrets: Mapping[str, str] | None = None,
        concurrency: int = 1,
        restarts: int = 0,
    ) -> None:
        """`arguments`: what each copy is constructed from; one bundle of the role for each. `secrets`: variables of its
        environment that no log may hold. `concurrency`: calls that a copy answers side by side, on threads.
        `restarts`: times that a copy whose process dies is constructed anew, and asked again what it had not answered;
        only for one that nothing but its arguments decides."""
        self.role = role
        self._hosting = hosting
        bundles = [index for index, place in enumerate(hosting.places) if place.role == role]
        self._names = [hosting.places[bundle].name for bundle in bundles]
        # By which an actor finds another; a handle among its arguments could not be restored when it is replaced.
        self._ray_names = [f"{name} {uuid.uuid4().hex}" for name in self._names]
        self._actors: list[ActorHandle] = [
            ray.remote(as_actor(worker_class))
            .options(
                name=ray_name,
                num_cpus=hosting.places[bundle].cpus,
                num_gpus=hosting.places[bundle].gpus,
                max_concurrency=concurrency,
                max_restarts=restarts,
                max_task_retries=-1 if restarts else 0,
                runtime_env={"env_vars": {**hosting.environment, **self.own_environment}},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=hosting.placement, placement_group_bundle_index=bundle
                ),
            )
            .remote(name, str(hosting.roster.log_path(name)), dict(secrets or {}), *own)
            for bundle, name, ray_name, own in zip(bundles, self._names, self._ray_names, arguments, strict=True)
        ]
        for name, actor in zip(self._names, self._actors, strict=True):
            hosting.roster.enlist(name, actor)
            if not restarts:
                hosting.roster.watch(actor)

    def __len__(self) -> int:
        return len(self._actors)

    def ready(self) -> list[tuple[str, ObjectRef]]:
        """A reference for each copy that resolves when it has been constructed."""
        return [(name, actor.__ray_ready__.remote()) for name, actor in zip(self._names, self._actors, strict=True)]

    def vitals(self) -> list[Asked]:
        """What each copy says of itself, its memory since it was last asked."""
        return [
            Asked(role=self.role, name=name, vitals=actor.take_vitals.remote())
            for name, actor in zip(self._names, self._actors, strict=True)
        ]

    def wait(self, refs: Sequence[ObjectRef], *, verb: str) -> list[Any]:
        """The answers, in order.

        Raises the worker's own error, WorkerFailed (its constructor's), WorkerDied or WorkerTimeout, with who it was
        and the last lines of its log.
        """
        roster = self._hosting.roster
        try:
            with self._waiting(refs, verb) as slices_s:
                while True:
                    with suppress(GetTimeoutError):
                        return ray.get(list(refs), timeout=next(slices_s))
        # Before RayTaskError: a call whose arguments died with another worker raises what is both.
        except RayActorError as error:
            raise roster.died(error, refs, role=self.role, verb=verb) from None
        except RayTaskError as error:
            raise roster.raised(error, refs, role=self.role, verb=verb) from None

    def wait_for_one(self, refs: Sequence[ObjectRef], *, verb: str) -> int:
        """Which of the answers is there first. Raises WorkerDied and WorkerTimeout."""
        return list(refs).index(self._there(refs, wanted=1, verb=verb)[0])

    def wait_there(self, refs: Sequence[ObjectRef], *, verb: str) -> None:
        """Until all answers exist, without bringing them here. What was raised instead is raised to their reader."""
        self._there(refs, wanted=len(refs), verb=verb)

    def waiter(self, refs: Sequence[ObjectRef], *, verb: str) -> Callable[[], list[Any]]:
        """What waits for the answers on another thread, beside what the run waits for; it raises what `wait` does."""
        beside = copy.copy(self)
        beside._hosting = replace(self._hosting, roster=self._hosting.roster.beside())
        return partial(beside.wait, refs, verb=verb)

    def _there(self, refs: Sequence[ObjectRef], *, wanted: int, verb: str) -> list[ObjectRef]:
        with self._waiting(refs, verb) as slices_s:
            ready: list[ObjectRef] = []
            while len(ready) < wanted:
                ready, _ = ray.wait(list(refs), num_returns=wanted, timeout=next(slices_s), fetch_local=False)
        return ready

    def _waiting(self, refs: Sequence[ObjectRef], verb: str) -> AbstractContextManager[Iterator[float]]:
        return self._hosting.roster.waiting(refs, role=self.role, verb=verb, limit_s=self._hosting.call_timeout_s)


class TrainerGroup(WorkerGroup):
    """The data-parallel ranks of a model that learns; every verb is a collective of all ranks."""

    def wait(self, refs: Sequence[ObjectRef], *, verb: str) -> list[Any]:
        """The same. Where one rank died, the error of another that missed it is not what happened: WorkerDied is."""
        try:
            return super().wait(refs, verb=verb)
        except WorkerDied:
            raise
        except Exception:  # whatever a library raises when its peer is gone; raised again unless one is
            self._raise_a_death(refs, verb=verb)
            raise

    def raise_a_death(self) -> None:
        """Raises WorkerDied where a rank is gone."""
        if self._actors:
            self._raise_a_death([ref for _, ref in self.ready()], verb="stand by")

    def _raise_a_death(self, refs: Sequence[ObjectRef], *, verb: str) -> None:
        """Ray hears of a death a moment after the other ranks do."""
        answered, _ = ray.wait(list(refs), num_returns=len(refs), timeout=DEATH_KNOWN_WITHIN_S, fetch_local=False)
        for ref in answered:
            try:
                ray.get(ref, timeout=DEATH_KNOWN_WITHIN_S)
            except RayActorError as error:
                raise self._hosting.roster.died(error, refs, role=self.role, verb=verb) from None
            except (RayTaskError, GetTimeoutError):
                continue

    def save(self, folder: Path) -> Callable[[], list[tuple[FileEntry, ...]]]:
        """Begins; returns what waits for what each rank has written. A rank answers in the order in which it is asked:
        what it is asked later, it does when it has written what it held now."""
        return self.waiter([actor.save.remote(folder) for actor in self._actors], verb="save")

    def load(self, folder: Path) -> None:
        self.wait([actor.load.remote(folder) for actor in self._actors], verb="load")

    def offload(self) -> None:
        self.wait([actor.offload.remote() for actor in self._actors], verb="offload")

    def reload(self) -> None:
        self.wait([actor.reload.remote() for actor in self._actors], verb="reload")


@contextmanager
def trainers_death_first(*groups: TrainerGroup) -> Iterator[None]:
    """A block in which the error of a worker that missed a dead trainer (its memory, its answers) is told as that
    death: the run may go on after it."""
    try:
        yield
    except WorkerDied:
        raise
    except Exception:  # whatever it is; raised again unless a trainer is gone
        for group in groups:
            group.raise_a_death()
        raise


class StudentGroup(TrainerGroup):
    """A model that learns from a data set: one that writes, or (`RewardModelWorker`) one that judges."""

    def fit(self, shares: Sequence[Share], totals: Totals, objective: Objective) -> list[UpdateReport]:
        """One optimizer step; one share a rank."""
        calls = [actor.fit.remote(share, totals, objective) for actor, share in zip(self._actors, shares, strict=True)]
        return self.wait(calls, verb="learn from the data")

    def assess(self, shares: Sequence[Share], totals: Totals, objective: Objective) -> list[UpdateReport]:
        """The objective's figures, without learning."""
        calls = [
            actor.assess.remote(share, totals, objective) for actor, share in zip(self._actors, shares, strict=True)
        ]
        return self.wait(calls, verb="be measured")

    def first_logprobs(self, shares: Sequence[tuple[Lesson, ...]]) -> list[tuple[np.ndarray, ...]]:
        """What the model says of each sequence before its first update."""
        calls = [actor.first_logprobs.remote(share) for actor, share in zip(self._actors, shares, strict=True)]
        return self.wait(calls, verb="say what the reference thinks")

    def export(self, folder: Path) -> None:
        self.wait([actor.export.remote(folder) for actor in self._actors], verb="export")


class PolicyGroup(StudentGroup):
    """The model that is trained to answer."""

    @property
    def publisher(self) -> str:
        """Ray's name of the rank that knows which weights were published last."""
        return self._ray_names[0]

    def look(
        self,
        shares: Sequence[tuple[Update, ...]],
        objective: PolicyObjective,
        *,
        temperature: float,
        reference: Sequence[ObjectRef],
        critic: Sequence[ObjectRef],
        groups: Sequence[Sequence[ObjectRef]],
    ) -> list[np.ndarray]:
        """One entry a rank: its rows, what other models said of them, the groups they come from.

        How far each response is from the reference, where the reward is charged for it.
        """
        return self.wait(
            [
                actor.look.remote(share, objective, temperature, of_reference, of_critic, *refs)
                for actor, share, of_reference, of_critic, refs in zip(
                    self._actors, shares, reference, critic, groups, strict=True
                )
            ],
            verb="look at the rollouts",
        )

    def credit(
        self, advantages: Sequence[np.ndarray], objective: PolicyObjective, state: AlgorithmState
    ) -> list[ObjectRef]:
        """References to what a critic has to learn, one a rank; they are there when this returns."""
        credited = [
            actor.credit.remote(own, objective, state) for actor, own in zip(self._actors, advantages, strict=True)
        ]
        self.wait_there(credited, verb="credit the rollouts")
        return credited

    def update(self, objective: PolicyObjective, state: AlgorithmState) -> list[ObjectRef]:
        """References to the ranks' reports: policy and critic learn side by side."""
        return [actor.update.remote(objective, state) for actor in self._actors]

    def publish(self, version: int) -> WeightManifest:
        manifest, *_ = self.wait([actor.publish.remote(version) for actor in self._actors], verb="publish weights")
        return manifest


class CriticGroup(TrainerGroup):
    """The model that is trained to know what is to come. Empty for an algorithm without one."""

    def values(self, shares: Sequence[tuple[Update, ...]], *, groups: Sequence[Sequence[ObjectRef]]) -> list[ObjectRef]:
        """A reference for each share to what is expected before each token; to nothing where there is no critic."""
        if not self._actors:
            return [ray.put({})] * len(shares)
        values = [
            actor.values.remote(share, *refs) for actor, share, refs in zip(self._actors, shares, groups, strict=True)
        ]
        self.wait_there(values, verb="look at the rollouts")
        return values

    def update(self, objective: PolicyObjective, credits: Sequence[ObjectRef]) -> list[ObjectRef]:
        """References to the ranks' reports; none where there is no critic."""
        if not self._actors:
            return []
        return [actor.update.remote(objective, credit) for actor, credit in zip(self._actors, credits, strict=True)]


class ReferenceGroup(WorkerGroup):
    """The frozen policy."""

    def outputs(
        self, shares: Sequence[tuple[Update, ...]], *, temperature: float, groups: Sequence[Sequence[ObjectRef]]
    ) -> list[ObjectRef]:
        """A reference for each share to what the model says of its rows; empty when there is no reference model."""
        if not self._actors:
            return [ray.put({})] * len(shares)
        said = [
            self._actors[index % len(self)].reference_outputs.remote(share, temperature, *refs)
            for index, (share, refs) in enumerate(zip(shares, groups, strict=True))
        ]
        self.wait_there(said, verb="look at the rollouts")
        return said

    def follow(self, manifest: WeightManifest, *, share: float) -> None:
        """Move towards the policy's weights, by this share of the way."""
        self.wait([actor.follow.remote(manifest, share) for actor in self._actors], verb="follow the policy")

    def save(self, folder: Path) -> Callable[[], list[tuple[FileEntry, ...]]]:
        """Begins, as a trainer does. One copy is enough: all are equal."""
        return self.waiter([actor.save.remote(folder) for actor in self._actors[:1]], verb="save")

    def load(self, folder: Path) -> None:
        self.wait([actor.load.remote(folder) for actor in self._actors], verb="load")


class RolloutGroup(WorkerGroup):
    """The rollout engines; a draw always goes to the same one."""

    def __init__(
        self, worker_class: type, hosting: Hosting, *, arguments: Sequence[tuple[Any, ...]], restarts: int = 0
    ) -> None:
        super().__init__(
            worker_class,
            hosting,
            role="rollout",
            arguments=arguments,
            # A group that waited outside its engine could not be decoded beside the others.
            concurrency=MOST_GROUPS_AT_ONCE,
            restarts=restarts,
        )

    def generate(self, request: GroupRequest) -> ObjectRef:
        """A reference to the group's rollouts."""
        return self._actors[request.draw % len(self)].generate.remote(request)

    def cut_off(self, draws: Sequence[int]) -> int:
        """Nobody waits for these groups any more. Returns the tokens that were written of them."""
        return sum(self.wait([actor.cut_off.remote(draws) for actor in self._actors], verb="cut groups off"))

    def load_weights(self, manifest: WeightManifest) -> list[WeightReceipt]:
        return self.wait([actor.load_weights.remote(manifest) for actor in self._actors], verb="load weights")

    def sleep(self) -> None:
        self.wait([actor.sleep.remote() for actor in self._actors], verb="sleep")

    def wake(self) -> None:
        self.wait([actor.wake.remote() for actor in self._actors], verb="wake up")


class RewardGroup(WorkerGroup):
    """The judges."""

    # Their processes end with them, and first bury what rewards have started; Ray would kill them before they can.
    own_environment: ClassVar[Mapping[str, str]] = {"RAY_kill_child_processes_on_worker_exit": "0", **WAIT_ASLEEP}

    def score(self, group: ObjectRef, *, draw: int) -> ObjectRef:
        """A reference to the group's summary. The rollouts themselves stay where they were made."""
        return self._actors[draw % len(self)].score.remote(group)
