"""What a run needs is told before anything starts, in numbers that hold against hand arithmetic and measurement."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import CONF, REPOSITORY, Config, ConfigError, load_config
from engine.fit import check_fit, device_need, devices_of, memory_need
from engine.machine import Machine, this_machine
from engine.need import HEAD_TILE_BYTES, activation_bytes_per_token, need_of
from engine.sizes import ModelSizes, shipped_models
from tests.saved_tensors import saved_bytes
from workers.config import Device
from workers.linear_logprobs import TILE

GB = 1e9
LAPTOP = Machine(gpu_bytes=(), free_memory_bytes=int(12 * GB))
H100_BYTES = 81_559 * 2**20


def gpus(count: int, *, size: int = H100_BYTES) -> Machine:
    return Machine(gpu_bytes=(size,) * count, free_memory_bytes=int(500 * GB))


def refusal(config: Config, machine: Machine) -> str:
    with pytest.raises(ConfigError) as caught:
        check_fit(config, machine)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


# ----------------------------------------------------------------------------- need: by hand


def test_a_trainer_of_7b_under_zero_3_on_eight_ranks_needs_what_the_formula_says() -> None:
    need = need_of("policy", load_config(["model=qwen2.5-7b", "train.ranks=8", "train.tokens_per_micro_batch=4096"]))
    parameters, tokens = 7_615_616_512, 4096

    weights_and_optimizer = (2 + 12) * parameters / 8
    assert need.resident == pytest.approx(weights_and_optimizer + 1e9)
    checkpoints = 2 * 28 * 3584 * tokens
    one_layer = 2 * (8 * 3584 + 3 * 28 * 128 + 2 * 4 * 128 + 4 * 18944) * tokens
    head = 320 * 2**20 + (4 + 2 * 2) * 3584 * tokens
    buckets = 2 * 5e8 + 2 * 1e9
    gradients = 2 * parameters / 8
    # Its 0.95 billion parameters take the optimizer 15.2 GB: more than the backward pass.
    assert checkpoints + one_layer + head + buckets < 16 * parameters / 8
    assert need.working == pytest.approx(gradients + 16 * parameters / 8)
    assert need.peak == pytest.approx(31.46e9, rel=0.001)  # 1 + 13.33 + 1.90 + 15.23


def test_the_backward_pass_of_7b_is_its_largest_turn_at_65536_tokens() -> None:
    typed = ["model=qwen2.5-7b", "train.ranks=8", "train.tokens_per_micro_batch=65536"]
    need = need_of("policy", load_config(typed))
    tokens = 65_536
    backward = (
        2 * 28 * 3584 * tokens
        + 2 * (8 * 3584 + 3 * 3584 + 2 * 512 + 4 * 18944) * tokens
        + 320 * 2**20
        + (4 + 2 * 2) * 3584 * tokens
        + 3e9
    )
    assert backward > 16 * 7_615_616_512 / 8
    assert need.working == pytest.approx(2 * 7_615_616_512 / 8 + backward)


@pytest.mark.parametrize(
    ("precision", "stage", "resident", "gradients"),
    [
        ("bfloat16", 1, 2 + 12 / 4, 2),
        ("bfloat16", 2, 2 + 12 / 4, 2 / 4),
        ("bfloat16", 3, 14 / 4, 2 / 4),
        ("float32", 0, 4 + 8, 4),
        ("float32", 1, 4 + 12 / 4, 4),
        ("float32", 3, 16 / 4, 4 / 4),
    ],
)
def test_each_zero_stage_divides_one_thing_more(precision: str, stage: int, resident: float, gradients: float) -> None:
    typed = ["model=qwen2.5-3b", "cluster=gpus_4", "train.ranks=4"]
    config = load_config([*typed, f"model.precision={precision}", f"train.zero_stage={stage}"])
    need = need_of("policy", config)
    parameters = 3_085_938_688
    assert need.resident - 1e9 == pytest.approx(resident * parameters)
    assert need.working >= gradients * parameters + 16 * parameters / (4 if stage else 1)


def test_an_engine_needs_weights_and_keys_and_values_of_a_few_sequences() -> None:
    config = load_config(["model=llama3.1-8b"])
    weights = 2 * 8_030_261_248
    cache = 4 * 2048 * (2 * 32 * 8 * 128 * 2)  # 128 KiB a token
    room = 8192 * 2 * 3 * (4096 + 14336) + 3 * 4 * 256 * 128_256
    assert need_of("rollout", config).working == pytest.approx(weights + cache + room)


def test_a_budget_for_activations_is_what_they_take() -> None:
    """SmolLM2 in float32, 1,024 tokens a pass: 30 layers that keep 51,456 bytes a token, or 2,304 of their input."""
    typed = ["model=smollm2-135m", "algo=sft"]
    free, bound = (need_of("policy", load_config([*typed, *own])) for own in ([], ["train.activations_gib=1"]))
    kept = [1024 * ((30 - again) * 51_456 + again * 2_304) for again in range(31)]
    within = max(size for size in kept if size <= 2**30)
    assert free.working - bound.working == pytest.approx(kept[0] - within)
    again = load_config([*typed, "train.activations_gib=1", "model.gradient_checkpointing=true"])
    assert need_of("policy", again) == bound


def test_the_head_needs_two_tiles_and_a_rounded_one() -> None:
    for device in Device:
        tile = TILE[device.value]
        assert HEAD_TILE_BYTES[device] == tile.tokens * tile.words * (4 + 4 + 2)


# ----------------------------------------------------------------------------- need: measured


@pytest.mark.parametrize(("dtype", "number_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_a_layer_keeps_what_the_formula_says_within_a_quarter(dtype: str, number_bytes: int) -> None:
    import torch

    sizes = ModelSizes(layers=1, hidden=256, intermediate=1024, heads=8, key_value_heads=2, head_dimension=32)
    tokens = (2, 128)
    kept = _saved_bytes(sizes, getattr(torch, dtype), tokens, layers=3)
    kept -= _saved_bytes(sizes, getattr(torch, dtype), tokens, layers=1)
    told = activation_bytes_per_token(sizes, number_bytes=number_bytes)
    assert told == pytest.approx(kept / 2 / 256, rel=0.25)


def _saved_bytes(sizes: ModelSizes, dtype: object, tokens: tuple[int, int], *, layers: int) -> int:
    from transformers import AutoModelForCausalLM, Qwen2Config

    settings = Qwen2Config(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        vocab_size=64,
    )
    model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="sdpa").train()
    return saved_bytes(model, shape=tokens)


@pytest.mark.parametrize(
    ("precision", "stage", "checkpointing", "measured_gb"),
    [
        ("float32", 1, False, 4.44),
        ("bfloat16", 1, False, 3.10),
        ("float32", 1, True, 3.66),
        ("bfloat16", 1, True, 2.57),
        ("float32", 0, False, 2.76),
    ],
)
def test_a_measured_trainer_needed_that_much(
    precision: str, stage: int, checkpointing: bool, measured_gb: float
) -> None:
    """The growth of one CPU rank's resident memory: a Qwen2 of 71 million parameters, 4 x 512 tokens, 511 answered."""
    config = load_config(["model=smollm2-135m"])
    config.sizes = ModelSizes(
        layers=12,
        hidden=576,
        intermediate=1536,
        heads=9,
        key_value_heads=3,
        head_dimension=64,
        vocabulary=49_152,
        tied_embeddings=True,
        parameters=70_804_800,
    )
    config.train.zero_stage, config.train.tokens_per_micro_batch = stage, 2048
    config.model.precision = type(config.model.precision)(precision)
    config.model.gradient_checkpointing = checkpointing
    import_gb = 0.45
    assert need_of("policy", config).peak / GB - import_gb == pytest.approx(measured_gb, rel=0.25)


def test_the_measured_default_run_needed_that_much() -> None:
    measured_gb = 3.06  # the proportional set sizes of all its processes, at their highest
    assert memory_need(load_config([])) / GB == pytest.approx(measured_gb, rel=0.25)


# ----------------------------------------------------------------------------- who shares a GPU


def test_everybody_shares_one_gpu_and_the_largest_turn_counts_once() -> None:
    config = load_config(["model=qwen2.5-0.5b"])
    (everybody,) = devices_of(config.team())
    assert [place.role for place in everybody] == ["policy", "rollout", "reference"]
    resident = sum(need_of(role, config).resident for role in ("policy", "rollout", "reference"))
    working = need_of("policy", config).working
    assert device_need(config, everybody, engine_share=1e9, judge_share=0.0) == resident + working
    assert device_need(config, everybody, engine_share=70e9, judge_share=0.0) == resident + 70e9


def test_whole_gpus_are_a_worker_s_own_and_parts_go_where_least_is_left() -> None:
    config = load_config(["model=qwen2.5-7b"])
    assert [[place.name for place in places] for places in devices_of(config.team())] == [
        ["policy 0"],
        ["policy 1"],
        ["policy 2"],
        ["policy 3"],
        ["rollout 0"],
        ["rollout 1"],
        ["rollout 2"],
        ["reference 0"],
    ]
    typed = ["cluster.gpus_per_trainer=0.6", "cluster.gpus_per_engine=0.4", "train.ranks=2", "rollout.engines=2"]
    together = devices_of(load_config(["model=qwen2.5-7b", *typed]).team())
    assert [[place.name for place in places] for places in together] == [
        ["policy 0", "rollout 0"],
        ["policy 1", "rollout 1"],
        ["reference 0"],
    ]


@pytest.mark.parametrize("name", [model.name for model in shipped_models(CONF)])
def test_every_model_fits_the_machine_that_its_file_names(name: str) -> None:
    config = load_config([f"model={name}"])
    file = (CONF / f"model/{name}.yaml").read_text()
    if config.cluster.device is Device.CPU:
        assert f"{name} needs" in check_fit(config, Machine(gpu_bytes=(), free_memory_bytes=int(14 * GB)))
        return
    words = {1: "one GPU", 4: "four GPUs", 8: "eight GPUs", 16: "sixteen GPUs"}
    count = len(devices_of(config.team()))
    assert f"on {words[count]} of 80 GB" in file
    assert f"needs {count} GPU" in check_fit(config, gpus(count, size=80 * 10**9))


# ----------------------------------------------------------------------------- in words


def test_a_machine_without_a_gpu_is_told_what_is_needed_and_what_would_fit() -> None:
    problem, advice = refusal(load_config(["algo=grpo", "model=qwen2.5-7b"]), LAPTOP).splitlines()

    assert problem == (
        "qwen2.5-7b needs 8 GPUs of 48 GB (trainers: 4 x 47 GB, engines: 3 x 18 GB, reference: 19 GB); "
        "this machine has no GPU."
    )
    assert advice.startswith("  model=nano would fit here; cluster.address=")
    roomy = Machine(gpu_bytes=(), free_memory_bytes=int(30 * GB))
    assert "model=smollm2-135m would fit here" in refusal(load_config(["model=qwen2.5-7b"]), roomy)


def test_too_few_and_too_small_gpus_are_told() -> None:
    config = load_config(["model=qwen2.5-7b"])
    assert "needs 8 GPUs of 48 GB" in refusal(config, gpus(4))
    assert "this machine has 4 GPUs of 86 GB" in refusal(config, gpus(4))
    small = refusal(config, gpus(8, size=24_564 * 2**20))
    assert "this machine has 8 GPUs of 26 GB" in small
    assert check_fit(config, gpus(8)).endswith("; this machine has 8 GPUs of 86 GB")


def test_the_largest_smaller_model_that_fits_is_named() -> None:
    assert "model=deepseek-r1-distill-qwen-1.5b would fit" in refusal(load_config(["model=qwen2.5-7b"]), gpus(1))
    assert "model=qwen3-4b would fit here" in refusal(load_config(["model=qwen2.5-14b"]), gpus(4))


def test_the_same_model_on_other_devices_is_named_before_a_smaller_one() -> None:
    h200 = gpus(8, size=143_771 * 2**20)
    assert "  model=qwen2.5-32b cluster=gpus_8 would fit here" in refusal(load_config(["model=qwen2.5-32b"]), h200)


def test_a_large_model_on_cpu_is_told() -> None:
    problem = refusal(load_config(["model=qwen2.5-7b", "cluster=cpu"]), LAPTOP).splitlines()[0]
    assert problem.startswith("qwen2.5-7b needs 197 GB of memory (trainer: 145 GB, engine: 18 GB, reference: 18 GB")
    assert problem.endswith("this machine has 12 GB free.")


# ----------------------------------------------------------------------------- with a critic

SIXTEEN_BIT_ADAM = 2 + 12
"""Bytes a parameter: the weights, and the optimizer's float32."""


def test_a_critic_is_told_beside_the_trainer_and_has_no_such_head() -> None:
    told = check_fit(load_config(["algo=ppo"]), LAPTOP)
    assert "(trainer: 0.9 GB, critic: 0.9 GB, engine: " in told
    # What the critic's process takes by itself, and its activations, are the trainer's.
    config = load_config(["algo=ppo", "model=qwen2.5-7b"])
    policy, critic = need_of("policy", config), need_of("critic", config)
    assert critic.resident == policy.resident
    assert critic.working == policy.working == pytest.approx(2 * 7_615_616_512 / 4 + 16 * 1e9), "the optimizer's turn"
    long = load_config(["algo=ppo", "model=qwen2.5-7b", "train.tokens_per_micro_batch=65536"])
    head = 320 * 2**20 + (4 + 2 * 2) * 3584 * 65_536
    assert need_of("policy", long).working - need_of("critic", long).working == pytest.approx(head)


def test_a_critic_with_a_model_of_its_own_needs_what_that_model_needs() -> None:
    own = need_of("critic", load_config(["algo=ppo", "model=qwen2.5-7b", "critic.path=Qwen/Qwen2.5-0.5B-Instruct"]))
    assert own.resident == pytest.approx(1e9 + SIXTEEN_BIT_ADAM * 494_032_768 / 4)
    folder = need_of("critic", load_config(["algo=ppo", "critic.path=examples/nano/policy"]))
    assert folder == need_of("critic", load_config(["algo=ppo"]))
    unknown = load_config(["algo=ppo", "model=qwen2.5-7b", "critic.path=somebody/something"])
    assert need_of("critic", unknown) == need_of("critic", load_config(["algo=ppo", "model=qwen2.5-7b"]))


def test_a_critic_has_gpus_of_its_own_and_shares_the_only_one() -> None:
    whole = devices_of(load_config(["algo=ppo", "model=qwen2.5-7b"]).team())
    assert [[place.name for place in places] for places in whole][3:6] == [["policy 3"], ["critic 0"], ["critic 1"]]
    assert len(whole) == 4 + 4 + 3 + 1
    (everybody,) = devices_of(load_config(["algo=ppo", "model=qwen2.5-0.5b"]).team())
    assert [place.role for place in everybody] == ["policy", "critic", "rollout", "reference"]
    assert "needs 1 GPU of 40 GB" in check_fit(load_config(["algo=ppo", "model=qwen2.5-0.5b"]), gpus(1))


def test_where_a_layout_has_no_room_for_critics_one_that_has_is_named() -> None:
    config = load_config(["algo=ppo", "model=qwen2.5-7b"])
    problem, advice = refusal(config, gpus(8)).splitlines()

    assert problem.startswith("qwen2.5-7b needs 12 GPUs of 48 GB (trainers: 4 x 47 GB, critics: 4 x 47 GB, engines: ")
    assert advice.startswith("  model=qwen2.5-7b train.ranks=3 rollout.engines=1 would fit here; ")
    taken = load_config(["algo=ppo", "model=qwen2.5-7b", "train.ranks=3", "rollout.engines=1"])
    assert "needs 8 GPUs of 80 GB" in check_fit(taken, gpus(8))
    assert "needs 12 GPUs" in check_fit(config, gpus(12))


def test_what_would_fit_is_looked_for_with_the_same_algorithm() -> None:
    """GRPO with this model would fit where PPO does not, and that is no help."""
    assert check_fit(load_config(["model=qwen2.5-3b"]), gpus(4))
    told = refusal(load_config(["algo=ppo", "model=qwen2.5-3b"]), gpus(4))
    smaller = told.partition("model=")[2].split()[0]
    assert check_fit(load_config(["algo=ppo", f"model={smaller}"]), gpus(4))


def test_without_a_reference_and_offline_less_is_needed() -> None:
    assert len(devices_of(load_config(["model=qwen2.5-7b", "algo.kl_coef=0"]).team())) == 7
    offline = refusal(load_config(["algo=sft", "model=qwen2.5-7b"]), LAPTOP)
    assert offline.startswith("qwen2.5-7b needs 4 GPUs of 48 GB (trainers: 4 x 47 GB); ")
    assert "kl_coef" not in offline


def test_what_cannot_be_known_is_said_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = load_config(["model=qwen2.5-7b", "model.path=somebody/something"])
    assert "somebody/something needs is not known" in check_fit(unknown, LAPTOP)
    config = load_config(["model=qwen2.5-7b", "cluster.address=10.0.0.1:6379"])
    assert "not checked" in check_fit(config, LAPTOP)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "not checked" in check_fit(load_config(["model=qwen2.5-7b"]), LAPTOP)


# ----------------------------------------------------------------------------- what there is


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that lists two GPUs, or those of --id."""
    script = tmp_path / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\n"
        'while [ $# -gt 0 ]; do [ "$1" = --id ] && only="$2"; shift; done\n'
        'case "$only" in "") echo 81559; echo 24564;; 0) echo 81559;; 1) echo 24564;; *) exit 6;; esac\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return script


@pytest.mark.parametrize(
    ("visible", "mebibytes"), [(None, (81_559, 24_564)), ("1", (24_564,)), ("", ()), ("-1", ()), ("7", ())]
)
def test_gpus_are_those_that_cuda_would_see(
    visible: str | None, mebibytes: tuple[int, ...], nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert this_machine().gpu_bytes == tuple(size * 2**20 for size in mebibytes)


def test_a_machine_without_nvidia_smi_has_no_gpu(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(nvidia_smi.parent / "nowhere"))
    assert this_machine().gpu_bytes == ()
    assert this_machine().free_memory_bytes > 0


# ----------------------------------------------------------------------------- at the command line


def test_a_run_that_does_not_fit_ends_at_once_without_a_trace(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "engine.main", "algo=grpo", "model=qwen2.5-7b", f"run.folder={tmp_path}"],
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert done.returncode == 2
    assert done.stderr.startswith("heliostat: qwen2.5-7b needs 8 GPUs of 48 GB (trainers: 4 x ")
    assert "this machine has no GPU." in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
    # The processor's seconds: a machine that does other things too may take longer by the clock.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_the_check_imports_nothing_heavy() -> None:
    program = (
        "import sys; from engine.main import load_config, check_fit, this_machine;"
        "print(check_fit(load_config([]), this_machine()));"
        "print([name for name in ('torch', 'ray', 'transformers', 'vllm', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    told, heavy = done.stdout.splitlines()
    assert told.startswith("nano needs 3.7 GB of memory (trainer: ")
    assert heavy == "[]"
