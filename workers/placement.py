"""Where every worker runs: one bundle of CPUs and GPUs each, reserved together or not at all."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from workers.config import ClusterConfig
from workers.places import Place
from workers.processes import import_path
from workers.stopped import RunStopped


class PlacementTimeout(RunStopped):
    """The cluster could not give the devices that the workers ask for."""


class NoCluster(RunStopped):
    """There is no Ray cluster at the address that was given."""


@contextmanager
def connected(cluster: ClusterConfig, places: Sequence[Place]) -> Iterator[None]:
    """A Ray cluster: the one at `cluster.address` or RAY_ADDRESS, or a local one that is gone afterwards.

    A local cluster declares the CPUs that the bundles ask for: two cores may serve six workers that take turns.
    """
    environment = {"env_vars": {"PYTHONPATH": import_path()}}
    # What is in flight when a run ends, or was cut off, fails with nobody waiting for it: no news for a person.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Of each log of Ray's own, which keeps three GB of it by default.
    os.environ.setdefault("RAY_ROTATION_MAX_BYTES", str(16 << 20))
    os.environ.setdefault("RAY_ROTATION_BACKUP_COUNT", "1")
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    local_only: dict[str, object] = {}
    if address == "local":
        local_only = {
            "num_cpus": math.ceil(sum(place.cpus for place in places)),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",  # nothing of a local run listens to the network
            "object_store_memory": 1 << 30,
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            runtime_env=environment,
            log_to_driver=False,
            logging_level="ERROR",
            **local_only,
        )
    except ConnectionError as error:
        raise NoCluster(f"no Ray cluster answers at {address}, from cluster.address or RAY_ADDRESS: {error}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # for which Ray has taken one of its own
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def reserved(places: Sequence[Place], *, timeout_s: float) -> Iterator[PlacementGroup]:
    """One bundle for each place, given back afterwards.

    Raises PlacementTimeout when the cluster cannot give them all within the time.
    """
    bundles = [{"CPU": place.cpus, **({"GPU": place.gpus} if place.gpus else {})} for place in places]
    group = placement_group(bundles, strategy="PACK")
    try:
        if not group.wait(timeout_s):
            raise PlacementTimeout(_shortage(places, timeout_s))
        yield group
    finally:
        remove_placement_group(group)


def _shortage(places: Sequence[Place], timeout_s: float) -> str:
    asked = {"CPU": sum(place.cpus for place in places), "GPU": sum(place.gpus for place in places)}
    whole, free = ray.cluster_resources(), ray.available_resources()
    lines = [f"asked for {len(places)} bundles ({', '.join(place.name for place in places)}); after {timeout_s:g} s:"]
    for kind, amount in asked.items():
        if amount:
            lines.append(
                f"  {kind}: {amount:g} asked, {whole.get(kind, 0):g} in the cluster, {free.get(kind, 0):g} free"
            )
    lines.append("Ask for less (train.ranks, rollout.engines, cluster.*_per_*), or add nodes.")
    return "\n".join(lines)
