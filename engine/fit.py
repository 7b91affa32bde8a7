"""Whether a run fits the machine it is started on: what it needs, what there is, and what would fit instead."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from engine.compose import options_in
from engine.config import CONF, Config, ConfigError, load_config
from engine.machine import Machine
from engine.need import GB, Need, need_of, weight_bytes
from engine.sizes import shipped_models
from workers.config import Device, TeamConfig
from workers.places import Place, places_for

CARDS_GB = (16, 24, 32, 40, 48, 80, 96, 141, 180)
"""As they are sold: each holds at least so many billion bytes."""
RAY_BYTES = 0.75e9
"""Ray's own processes and the driver, beside the workers."""
KEYS = ("cluster.device", "train.ranks", "rollout.engines", "model.path")
CPU_LAYOUT = "cpu"


def check_fit(config: Config, machine: Machine) -> str:
    """One line for people: what the run needs and what there is.

    Raises ConfigError when it needs more. What cannot be known (a model without sizes, another machine's memory) is
    said, and passes.
    """
    name = _name(config)
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return "runs on an existing Ray cluster, whose memory is not checked"
    if not config.sizes.are_known:
        return f"how much memory {name} needs is not known: neither conf/model nor a config.json tells its sizes"
    need, found = _told(config, machine)
    if _fits(config, machine):
        return f"{name} needs {need}; this machine has {found}"
    raise ConfigError(f"{name} needs {need}; this machine has {found}.", keys=KEYS, advice=_advice(config, machine))


# ----------------------------------------------------------------------------- does it fit


def _fits(config: Config, machine: Machine) -> bool:
    if config.cluster.device is Device.CPU:
        return memory_need(config) <= machine.free_memory_bytes
    devices = devices_of(config.team())
    largest_first = sorted(machine.gpu_bytes, reverse=True)[: len(devices)]
    return len(largest_first) == len(devices) and all(_device_fits(config, devices, size) for size in largest_first)


def memory_need(config: Config) -> float:
    """Bytes of main memory of a run on CPU: all workers, the weights on their way to the engines, and Ray."""
    workers = sum(need_of(place.role, config).peak for place in places_for(config.team()))
    shared = weight_bytes(config) if config.algo.online else 0.0
    return workers + shared + RAY_BYTES


def devices_of(team: TeamConfig) -> tuple[tuple[Place, ...], ...]:
    """Who shares a GPU, as Ray places them: whole GPUs are a worker's own, a part goes where the least is left."""
    shared: list[tuple[float, list[Place]]] = []
    own: list[tuple[Place, ...]] = []
    for place in places_for(team):
        if place.gpus >= 1:
            own += [(place,), *[()] * (math.ceil(place.gpus) - 1)]
        elif place.gpus > 0:
            room = [number for number, (left, _) in enumerate(shared) if left >= place.gpus - 1e-9]
            if not room:
                shared.append((1.0 - place.gpus, [place]))
                continue
            tightest = min(room, key=lambda number: shared[number][0])
            left, places = shared[tightest]
            shared[tightest] = (left - place.gpus, [*places, place])
    return (*own, *(tuple(places) for _, places in shared))


def _device_fits(config: Config, devices: Sequence[Sequence[Place]], card_bytes: float) -> bool:
    """Whether each of the devices would do with a card of this size."""
    share = config.rollout.gpu_memory_share * card_bytes
    judge_share = config.reward.judge.gpu_memory_share * card_bytes
    return all(
        device_need(config, places, engine_share=share, judge_share=judge_share) <= card_bytes
        and all(need_of(place.role, config).working <= share for place in places if place.role == "rollout")
        and all(need_of(place.role, config).resident <= judge_share for place in places if place.role == "judge")
        for places in devices
    )


def device_need(config: Config, places: Sequence[Place], *, engine_share: float, judge_share: float) -> float:
    """Bytes of one GPU: everybody's at rest, and the largest turn. Engine and judge take their shares in any case."""
    needs = [(place.role, need_of(place.role, config)) for place in places]
    turns = [max(need.working, engine_share) if role == "rollout" else need.working for role, need in needs]
    rests = [max(need.resident, judge_share) if role == "judge" else need.resident for role, need in needs]
    return sum(rests) + max(turns, default=0.0)


# ----------------------------------------------------------------------------- in words


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoleNeed:
    """All workers of a role."""

    role: str
    count: int
    need: Need

    def __str__(self) -> str:
        names = {"policy": "trainer", "rollout": "engine"}
        name = names.get(self.role, self.role) + ("s" if self.count > 1 else "")
        return f"{name}: {f'{self.count} x ' if self.count > 1 else ''}{_gb(self.need.peak)}"


def _told(config: Config, machine: Machine) -> tuple[str, str]:
    """What is needed, and what there is."""
    roles = ", ".join(map(str, _role_needs(config)))
    if config.cluster.device is Device.CPU:
        found = f"{_gb(machine.free_memory_bytes)} free"
        return f"{_gb(memory_need(config))} of memory ({roles}, weights in between, Ray)", found
    devices = devices_of(config.team())
    together = ", taking turns" if config.team().shares_devices else ""
    count = f"{len(devices)} GPU{'s' if len(devices) > 1 else ''}"
    return f"{count} of {_card(config, devices)} ({roles}{together})", _gpus(machine)


def _role_needs(config: Config) -> Iterator[_RoleNeed]:
    places = places_for(config.team())
    for role in dict.fromkeys(place.role for place in places if place.role != "reward" or config.reward.model):
        count = sum(place.role == role for place in places)
        yield _RoleNeed(role=role, count=count, need=need_of(role, config))


def _card(config: Config, devices: Sequence[Sequence[Place]]) -> str:
    """The smallest GPU that would do."""
    for size in CARDS_GB:
        if _device_fits(config, devices, size * GB):
            return f"{size} GB"
    return f"more than {CARDS_GB[-1]} GB"


def _gpus(machine: Machine) -> str:
    if not machine.gpu_bytes:
        return "no GPU"
    count, smallest = len(machine.gpu_bytes), min(machine.gpu_bytes)
    return f"{count} GPU{'s' if count > 1 else ''} of {_gb(smallest)}"


def _gb(num_bytes: float) -> str:
    """
    >>> _gb(1.24e9), _gb(60.7e9)
    ('1.2 GB', '61 GB')
    """
    amount = num_bytes / GB
    return f"{amount:.1f} GB" if amount < 10 else f"{amount:.0f} GB"


def _name(config: Config) -> str:
    return next((model.name for model in shipped_models(CONF) if model.path == config.model.path), config.model.path)


# ----------------------------------------------------------------------------- what to do


def _advice(config: Config, machine: Machine) -> str:
    lighter = _lighter_runs(config, machine)
    choice = next((argv for argv in lighter if _fits(_with_own_algorithm(argv, config), machine)), None)
    ways = [f"{' '.join(choice)} would fit here"] if choice else []
    ways.append("cluster.address=<a Ray cluster> runs it elsewhere")
    ways.append("train.tokens_per_micro_batch=<less> and model.context_length=<less> need less")
    if config.team().reference:
        ways.append("algo.kl_coef=0 needs no reference")
    if any(place.role == "judge" for place in places_for(config.team())):
        ways.append("a judge at an endpoint elsewhere (a function's arguments.url) needs nothing here")
    return "; ".join(ways) + "."


def _with_own_algorithm(argv: Sequence[str], config: Config) -> Config:
    """Another run of the same algorithm: whether it needs a reference and a critic decides what fits."""
    return replace(load_config(argv), algo=config.algo, critic=config.critic, reward=config.reward)


def _splits(config: Config, gpus: int) -> Iterator[list[str]]:
    """So many GPUs dealt out anew, as many trainers as can be: the layouts of conf/cluster count no critics."""
    team = config.team()
    if team.has_critic and not team.shares_devices:
        frozen = team.reference + (team.reward.workers if team.reward.model else 0)
        frozen += math.ceil(sum(place.gpus for place in places_for(team) if place.role == "judge"))
        for ranks in range((gpus - frozen - 1) // 2, 0, -1):
            yield [f"train.ranks={ranks}", f"rollout.engines={gpus - frozen - 2 * ranks}"]


def _lighter_runs(config: Config, machine: Machine) -> Iterator[list[str]]:
    """What may fit instead, the nearest first: the same model on other devices, then smaller ones as they choose."""
    layouts = [layout for layout in options_in(CONF)["cluster"] if layout != CPU_LAYOUT]
    for model in reversed(shipped_models(CONF)):
        # Composing takes a tenth of a second: what no GPU here can hold the optimizer of is passed over.
        if model.cluster and 12 * model.sizes.parameters > sum(machine.gpu_bytes):
            continue
        if model.path == config.model.path:
            yield from ([f"model={model.name}", *split] for split in _splits(config, len(machine.gpu_bytes)))
            yield from ([f"model={model.name}", f"cluster={layout}"] for layout in layouts)
        elif model.sizes.parameters < config.sizes.parameters:
            yield [f"model={model.name}"]
