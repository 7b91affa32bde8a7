"""`reward.model`: what it may be, where it gets its place, and what it is counted with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.config import Config, ConfigError, load_config
from engine.fit import check_fit, memory_need
from engine.machine import Machine
from engine.model_checks import models_of
from engine.need import GB, need_of
from engine.tasks import prepare_online
from workers.places import places_for

ROOM = Machine(gpu_bytes=(), free_memory_bytes=int(64 * GB))


def reward_model(folder: Path, *, architecture: str = "Qwen2ForSequenceClassification", labels: int = 1) -> str:
    """Of 10 million parameters, as far as its files tell."""
    folder.mkdir()
    nano = json.loads(Path("examples/nano/policy/config.json").read_text())
    named = {"architectures": [architecture], "id2label": {str(label): f"LABEL_{label}" for label in range(labels)}}
    (folder / "config.json").write_text(json.dumps(nano | named | {"max_position_embeddings": 128}))
    save_file({"all": np.zeros((10, 1000, 1000), dtype=np.float16)}, folder / "model.safetensors")
    return str(folder)


def with_model(folder: str, *overrides: str) -> Config:
    return load_config([f"reward.model={folder}", "model.context_length=100", *overrides])


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(argv)
    return str(caught.value)


def test_it_judges_beside_the_function_or_instead_of_it(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "rm")
    beside, instead = (with_model(folder, *more) for more in ((), ("reward.function=",)))
    assert beside.reward.function == "rewards.number:exact" and beside.team().reward.model == folder
    assert [spec.name for spec in prepare_online(beside).rewards] == ["exact"]
    assert prepare_online(instead).rewards == ()


@pytest.mark.parametrize(
    ("architecture", "labels", "told"),
    [
        ("Qwen2ForCausalLM", 1, "which is Qwen2ForCausalLM, and a reward model"),
        ("Qwen2ForSequenceClassification", 3, "which is Qwen2ForSequenceClassification with 3 labels, and"),
    ],
)
def test_what_gives_no_single_number_is_refused_before_anything_starts(
    tmp_path: Path, architecture: str, labels: int, told: str
) -> None:
    folder = reward_model(tmp_path / "rm", architecture=architecture, labels=labels)
    problem, origin, advice = refusal(f"reward.model={folder}", "model.context_length=100").splitlines()
    assert told in problem and f"reward.model={folder} on the command line" in origin and "algo=rm" in advice


def test_a_model_that_is_not_there_or_too_short_is_refused(tmp_path: Path) -> None:
    assert "reward.model is no/such/folder" in refusal("reward.model=no/such/folder")
    folder = reward_model(tmp_path / "rm")
    assert f"{folder} was made for at most 128 tokens" in refusal(f"reward.model={folder}")


def test_weights_need_something_to_weigh() -> None:
    assert "there is nothing to weigh" in refusal("reward.function_weight=0")
    assert "reward.function is empty" in refusal("reward.function=")
    tidy = "reward.functions.tidy.function=rewards.number:exact"
    assert load_config([tidy, "reward.function_weight=0"]).reward.function_weight == 0
    assert "no judge has a weight" in refusal(tidy, "reward.function_weight=0", "reward.functions.tidy.weight=0")
    assert "reward.functions.tidy.function is empty" in refusal("reward.functions.tidy.weight=1")
    assert "reward.functions.tidy.weight is nan" in refusal(tidy, "reward.functions.tidy.weight=nan")
    assert "reward.processes is 0" in refusal("reward.processes=0")


def test_it_is_one_of_the_models_of_a_run_that_samples_and_of_no_other(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "rm")
    assert models_of(with_model(folder))["reward.model"] == folder
    assert "reward.model" not in models_of(with_model(folder, "algo=sft"))
    assert not models_of(load_config([])).keys() & {"reward.model"}


def test_it_has_a_place_on_the_devices_that_trainers_have(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "rm")
    layout = ["cluster.device=cuda", "reward.workers=2", "cluster.gpus_per_trainer=1"]
    judges = [place for place in places_for(with_model(folder, *layout).team()) if place.role == "reward"]
    assert [place.gpus for place in judges] == [1, 1]
    functions = [place for place in places_for(load_config(layout).team()) if place.role == "reward"]
    assert [place.gpus for place in functions] == [0, 0]


def test_its_memory_is_counted(tmp_path: Path) -> None:
    config, without = with_model(reward_model(tmp_path / "rm")), load_config(["model.context_length=100"])
    # Float32 numbers of 10 million parameters, beside what torch itself takes.
    assert need_of("reward", config).resident == pytest.approx(0.3e9 + 40e6)
    assert need_of("reward", without).peak == pytest.approx(0.2e9)
    assert memory_need(config) - memory_need(without) == pytest.approx(
        need_of("reward", config).peak - need_of("reward", without).peak
    )
    assert "reward: " in check_fit(config, ROOM) and "reward: " not in check_fit(without, ROOM)
