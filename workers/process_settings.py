"""The environment that every worker's process is given: its threads, how they wait, what becomes of freed memory."""

from __future__ import annotations

import os
from collections.abc import Mapping

from workers.config import Device, TeamConfig

WAIT_AWAKE_FOR_A_MOMENT = {"GOMP_SPINCOUNT": "20000"}
WAIT_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
"""glibc would give large blocks back at once, and have the kernel zero them again at the next step."""


def process_settings(team: TeamConfig, own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`own`: the environment of whoever starts the run; what it says of waiting stands."""
    threads = team.cluster.threads_per_worker or len(os.sched_getaffinity(0))
    on_cpu = team.cluster.device is Device.CPU
    waiting = WAIT_AWAKE_FOR_A_MOMENT if take_turns(team) else WAIT_ASLEEP
    said = {name: own[name] for name in WAIT_ASLEEP if name in own}
    return {
        "OMP_NUM_THREADS": str(threads),
        **(said or waiting),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DS_ACCELERATOR": team.cluster.device.value,
        **({**KEEP_FREED_MEMORY, "TORCHDYNAMO_DISABLE": "1"} if on_cpu else {}),
    }


def take_turns(team: TeamConfig) -> bool:
    """Whether no two models ever calculate at the same time: one engine, one trainer and its reference wait for each
    other, unless the engine runs ahead; ranks, engines, policy and critic work side by side, and models that judge do
    while others decode.

    Reward functions work beside a decoding engine, too: their own threads sleep (`RewardGroup`). Threads that fall
    asleep between the many small operations of a decoding step take a third longer; threads that stay awake on cores
    that others need take most of the others' time.
    """
    judged_by_models = bool(team.reward.model or team.reward.judge.model)
    beside_the_engine = team.rollout.engines > 1 or team.rollout.max_staleness > 0 or judged_by_models
    return team.train.ranks == 1 and not team.has_critic and not (team.rollout_workers and beside_the_engine)
