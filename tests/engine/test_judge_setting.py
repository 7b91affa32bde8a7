"""`reward.judge`: which mistakes are told before anything starts, where it runs, and what it is counted with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from engine.config import Config, ConfigError, load_config
from engine.fit import check_fit, device_need, devices_of, memory_need
from engine.job_package import pack
from engine.machine import Machine
from engine.model_checks import models_of
from engine.need import GB, need_of
from engine.tasks import prepare_online
from rewards.load import RewardError
from workers.judge_endpoint import JudgeEndpoint, waits_for_judge, with_endpoint
from workers.places import places_for

TASTE = "reward.functions.taste.function=rewards.judge:rubric"
URL = "reward.functions.taste.arguments.url=http://127.0.0.1:8000/v1"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def judge(folder: Path, *, architecture: str = "Qwen2ForCausalLM", template: bool = True, positions: int = 8192) -> str:
    """Of 10 million parameters, as far as its files tell."""
    import numpy as np

    folder.mkdir()
    nano = json.loads(Path("examples/nano/policy/config.json").read_text())
    own = {"architectures": [architecture], "max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(nano | own))
    save_file({"all": np.zeros((10, 1000, 1000), dtype=np.float16)}, folder / "model.safetensors")
    if template:
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    return str(folder)


def with_judge(folder: str, *overrides: str) -> Config:
    return load_config([TASTE, f"reward.judge.model={folder}", *overrides])


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(argv)
    return str(caught.value)


# ----------------------------------------------------------------------------- mistakes


def test_a_function_that_asks_nobody_is_told_both_ways_to_somebody() -> None:
    problem, origin, advice = refusal(TASTE).splitlines()
    assert problem == "reward.functions.taste.function is rewards.judge:rubric, and nothing says which model judges."
    assert TASTE in origin
    assert "reward.judge.model=<" in advice and "reward.functions.taste.arguments.url=http" in advice
    assert "reward.arguments.url=http" in refusal("reward.function=rewards.judge:preferred")
    assert load_config([TASTE, URL]).reward.judge.model == ""


def test_a_judge_that_nobody_asks_is_told(tmp_path: Path) -> None:
    folder = judge(tmp_path / "judge")
    assert "and no function asks it" in refusal(f"reward.judge.model={folder}")
    assert "and no function asks it" in refusal(f"reward.judge.model={folder}", TASTE, URL)


@pytest.mark.parametrize("name", ["model", "key_env"])
def test_what_the_judge_says_itself_is_not_said_twice(tmp_path: Path, name: str) -> None:
    folder, key = judge(tmp_path / "judge"), f"reward.functions.taste.arguments.{name}"
    assert refusal(TASTE, f"reward.judge.model={folder}", f"{key}=x").startswith(f"{key} is set, and ")


def test_a_folder_that_is_no_judge_is_told(tmp_path: Path) -> None:
    assert "reward.judge.model is no/such/folder" in refusal(TASTE, "reward.judge.model=no/such/folder")
    classifier = judge(tmp_path / "rm", architecture="Qwen2ForSequenceClassification")
    assert "Give it as reward.model" in refusal(TASTE, f"reward.judge.model={classifier}")
    silent = judge(tmp_path / "base", template=False)
    assert "has no chat template" in refusal(TASTE, f"reward.judge.model={silent}")
    short = judge(tmp_path / "short", positions=512)
    assert "Set reward.judge.context_length=512 or less" in refusal(TASTE, f"reward.judge.model={short}")
    # The policy's own limit is another one.
    assert with_judge(judge(tmp_path / "judge"), "model.context_length=512").reward.judge.context_length == 8192


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("max_reply_tokens=8192", "leaves no room for a question in reward.judge.context_length (8192)"),
        ("gpus=1.5", "a model on several GPUs takes whole ones"),
        ("gpus=0", "reward.judge.gpus is 0"),
        ("gpu_memory_share=1.2", "a share is at most 1"),
        ("kv_cache_gib=nan", "reward.judge.kv_cache_gib is nan"),
        ("max_runing=3", "Did you mean reward.judge.max_running?"),
    ],
)
def test_numbers_that_cannot_be_are_told(tmp_path: Path, setting: str, told: str) -> None:
    assert told in refusal(TASTE, f"reward.judge.model={judge(tmp_path / 'judge')}", f"reward.judge.{setting}")


# ----------------------------------------------------------------------------- before Ray


def test_a_function_that_waits_for_it_is_not_asked_before_it_is_up_and_that_is_told(tmp_path: Path) -> None:
    task = prepare_online(with_judge(judge(tmp_path / "judge"), "reward.functions.taste.arguments.votes=3"))
    tried, waits = [remark for remark in task.remarks if remark.startswith("reward ")]
    assert tried.startswith("reward rewards.number:exact") and "the first answer 1" in tried
    assert waits == "reward rewards.judge:rubric: tried when its judge judge is up"
    exact, taste = task.rewards
    assert not waits_for_judge(exact) and waits_for_judge(taste)
    assert len(task.canaries) == 2  # the reward workers try both
    endpoint = JudgeEndpoint(url="http://10.0.0.7:1/v1", model="judge", key="secret")
    _, ready = with_endpoint(task.rewards, endpoint)
    known = {"url": "http://10.0.0.7:1/v1", "model": "judge", "max_tokens": 1024, "key_env": "HELIOSTAT_JUDGE_KEY"}
    assert not waits_for_judge(ready) and ready.arguments == {"votes": 3, **known}


def test_a_column_of_the_data_by_the_name_of_what_it_says_is_told_now(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2", "model": "gpt"}\n')
    data = ["data=files", f"data.path={tmp_path / 'rows.jsonl'}", "data.held_out=0", "evaluation.prompts=0"]
    with pytest.raises(RewardError, match=r"reward\.arguments and the data both have model"):
        prepare_online(with_judge(judge(tmp_path / "judge"), *data, "reward.function="))


def test_it_is_one_of_the_models_that_a_job_names(tmp_path: Path) -> None:
    folder = judge(tmp_path / "judge")
    config = with_judge(folder, f"run.folder={tmp_path}")
    assert models_of(config)["reward.judge.model"] == folder and config.team().reward.judge.model == folder
    assert "reward.judge.model" not in models_of(load_config(["algo=sft", f"reward.judge.model={folder}"]))
    package = pack([TASTE, f"reward.judge.model={folder}"], config)
    assert any("every machine of the cluster must find" in note and folder in note for note in package.notes)


# ----------------------------------------------------------------------------- its place, and what it needs


def test_it_has_a_place_and_devices_of_its_own(tmp_path: Path) -> None:
    folder = judge(tmp_path / "judge")
    on_cpu, on_gpus = with_judge(folder), with_judge(folder, "cluster.device=cuda", "reward.judge.gpus=2")
    [place] = [place for place in places_for(on_cpu.team()) if place.role == "judge"]
    assert (place.name, place.cpus, place.gpus) == ("judge 0", 1.0, 0.0)
    assert [place.gpus for place in places_for(on_gpus.team()) if place.role == "judge"] == [2.0]
    assert len(devices_of(on_gpus.team())) - len(devices_of(load_config(["cluster.device=cuda"]).team())) == 2
    assert not [place for place in places_for(load_config([]).team()) if place.role == "judge"]
    assert not [place for place in places_for(with_judge(folder, "algo=sft").team()) if place.role == "judge"]


def test_its_memory_is_counted_on_cpu(tmp_path: Path) -> None:
    own = ["reward.judge.kv_cache_gib=2", "reward.judge.precision=float32"]
    config, without = with_judge(judge(tmp_path / "judge"), *own), load_config([])
    assert need_of("judge", config).resident == pytest.approx(1.5e9 + 40e6 + 2 * 2**30)
    assert memory_need(config) - memory_need(without) == pytest.approx(need_of("judge", config).peak)
    room = Machine(gpu_bytes=(), free_memory_bytes=int(64 * GB))
    assert "judge: 3" in check_fit(config, room) and "judge: " not in check_fit(without, room)
    with pytest.raises(ConfigError, match="judge: 3"):
        check_fit(config, Machine(gpu_bytes=(), free_memory_bytes=int(4 * GB)))


def test_on_a_gpu_it_takes_its_share_and_several_share_its_weights(tmp_path: Path) -> None:
    folder = judge(tmp_path / "judge")
    one, two = (with_judge(folder, "cluster.device=cuda", f"reward.judge.gpus={gpus}") for gpus in (1, 2))
    process = 1e9
    assert need_of("judge", two).resident - process == pytest.approx((need_of("judge", one).resident - process) / 2)
    assert need_of("judge", one).working == 0.0  # it never sleeps
    [place] = [place for place in places_for(one.team()) if place.role == "judge"]
    assert device_need(one, [place], engine_share=0.0, judge_share=72e9) == 72e9
    gpus = Machine(gpu_bytes=(int(80 * GB),) * 4, free_memory_bytes=int(500 * GB))
    assert "4 GPUs of" in check_fit(one, gpus) and "judge: " in check_fit(one, gpus)
    with pytest.raises(ConfigError, match="5 GPUs of"):
        check_fit(two, gpus)
