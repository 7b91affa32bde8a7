"""k steps and then n - k are n steps, bit for bit, for every k: of every stage, also at the end of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import forget_after, run_main

from tests.bench._disturbed import differences, draws

pytestmark = pytest.mark.slow
STEPS = 4
COMMON = (
    f"run.steps={STEPS}", "run.save_every_steps=1", "run.keep_checkpoints=10", "run.tensorboard=false",
    "run.keep_rollouts_every_steps=1", "evaluation.every_steps=2", "evaluation.prompts=8", "train.schedule=cosine",
    "evaluation.samples_per_prompt=2",
)  # fmt: skip
# What an engine's own log-probs weigh would carry its last bits into the weights.
ONLINE = (
    "rollout.engine=hf", "algo.correction.weight=none", "rollout.prompts_per_step=4",
    "rollout.responses_per_prompt=4", "train.updates_per_step=2",
)  # fmt: skip
DEMOS = ("algo=sft", "data=arithmetic_demos", "data.largest=9", "data.held_out=60", "train.examples_per_step=16")
"""40 examples: an epoch ends inside the third step."""
PAIRS = ("data=arithmetic", "data.largest=9", "data.held_out=60", "train.examples_per_step=10")
"""An epoch ends with the fourth step."""
STAGES = {
    "sft": DEMOS,
    "sft-lora-dropout": (*DEMOS, "tuning=lora", "tuning.dropout=0.2"),
    "sft-2-ranks-zero-3": (*DEMOS, "train.ranks=2", "train.zero_stage=3"),
    "rm": ("algo=rm", *PAIRS),
    "dpo": ("algo=dpo", *PAIRS),
    "grpo": (*ONLINE, "algo.kl_coef=0.01"),
    "grpo-lora": (*ONLINE, "tuning=lora"),
    "grpo-2-ranks-zero-2": (*ONLINE, "train.ranks=2", "train.zero_stage=2"),
    "grpo-epochs": (*ONLINE, "data.largest=4", "data.held_out=15"),
    "dapo": (*ONLINE, "algo=dapo", "algo.dynamic_sampling.draw_ahead=2.0"),
    "ppo": (*ONLINE, "algo=ppo", "algo.kl_coef=0.05", "algo.kl_target=0.01", "algo.reference_refresh.every_steps=2"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_after_every_step_the_rest_of_the_run_is_the_rest_of_the_run_that_was_not_stopped(
    stage: str, cluster: str, tmp_path: Path
) -> None:
    settings = (*COMMON, *STAGES[stage], f"cluster.address={cluster}")
    whole = run_main(*settings, folder=tmp_path, name="whole")
    assert whole.exit_code == 0, whole.output
    expected = dict(trainers_state(whole.folder))
    assert len(expected) > 10 and len(whole.steps) == STEPS
    for step in range(1, STEPS):
        name = f"stopped_{step}"
        forget_after(whole.folder, tmp_path / name, checkpoint=f"step_{step:06d}")
        resumed = run_main(*settings, folder=tmp_path, name=name)
        assert resumed.exit_code == 0, resumed.output
        assert f"going on after step {step}" in resumed.output
        assert not differences(whole.folder, resumed.folder, engine="hf")
        assert draws(whole.folder) == draws(resumed.folder)
        found = dict(trainers_state(resumed.folder))
        assert found.keys() == expected.keys()
        assert not [place for place, value in found.items() if not same(value, expected[place])]
    carried = list(whole.folder.glob("checkpoints/*/carried.jsonl"))
    assert bool(carried) == (stage == "dapo")


def trainers_state(run: Path) -> Iterator[tuple[str, Any]]:
    """All that its last checkpoint holds of models, optimizers and what goes with them, by place."""
    folder = run / "checkpoints" / f"step_{STEPS:06d}"
    for file in sorted(folder.rglob("*.pt")):
        # Written by the run above.
        yield from _flat(torch.load(file, map_location="cpu", weights_only=False), str(file.relative_to(folder)))


def _flat(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{place}/{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{place}/{number}")
    elif isinstance(value, torch.Tensor | int | float | str | bool):
        yield place, value


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
