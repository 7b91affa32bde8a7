"""A name is enough: every file of conf/model tells true sizes, and every algorithm runs sensibly on every model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.algorithms.base import Algorithm
from engine.compose import compose, options_in
from engine.config import CONF, OPEN_SECTIONS, REPOSITORY, Config, ConfigError, load_config
from engine.data.arithmetic import ArithmeticData
from engine.data.base import OfflineData, OnlineData, Split
from engine.data.gsm8k import Gsm8kData
from engine.sizes import ModelSizes, ShippedModel, read_sizes, shipped_models
from workers.config import Device, Precision

SHIPPED = shipped_models(CONF)
OPTIONS = options_in(CONF)


def each_model(*names: str) -> pytest.MarkDecorator:
    chosen = [model for model in SHIPPED if not names or model.name in names]
    return pytest.mark.parametrize("model", chosen, ids=lambda model: model.name)


# ----------------------------------------------------------------------------- the sizes are those of the models


def parameters_by_hand(sizes: ModelSizes, *, attention_biases: bool, query_key_norms: bool) -> int:
    """Of a Llama, Qwen2 or Qwen3, tensor by tensor."""
    query = sizes.heads * sizes.head_dimension
    key = sizes.key_value_heads * sizes.head_dimension
    attention = sizes.hidden * query + 2 * sizes.hidden * key + query * sizes.hidden
    if attention_biases:
        attention += query + 2 * key
    if query_key_norms:
        attention += 2 * sizes.head_dimension
    feed_forward = 3 * sizes.hidden * sizes.intermediate
    layer = attention + feed_forward + 2 * sizes.hidden
    head = 0 if sizes.tied_embeddings else sizes.vocabulary * sizes.hidden
    return sizes.vocabulary * sizes.hidden + sizes.layers * layer + sizes.hidden + head


def architecture(model: ShippedModel) -> str:
    if model.name.startswith("qwen3"):
        return "qwen3"
    return "llama" if model.name.startswith(("llama", "smollm2")) else "qwen2"


def test_there_is_a_file_for_every_model_of_the_list() -> None:
    qwen2 = {f"qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b")}
    qwen3 = {f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "32b")}
    llama = {"llama3.2-1b", "llama3.2-3b", "llama3.1-8b"}
    others = {"nano", "smollm2-135m", "deepseek-r1-distill-qwen-1.5b", "deepseek-r1-distill-qwen-7b"}
    assert {model.name for model in SHIPPED} == qwen2 | qwen3 | llama | others
    assert set(OPTIONS["model"]) == {model.name for model in SHIPPED} | {"own"}


@each_model()
def test_the_parameters_are_those_of_the_sizes(model: ShippedModel) -> None:
    kind = architecture(model)
    expected = parameters_by_hand(model.sizes, attention_biases=kind == "qwen2", query_key_norms=kind == "qwen3")
    assert model.sizes.parameters == expected


@each_model()
def test_transformers_builds_a_model_of_so_many_parameters(model: ShippedModel) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = model.sizes
    settings = AutoConfig.for_model(
        architecture(model),
        num_hidden_layers=sizes.layers,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        head_dim=sizes.head_dimension,
        vocab_size=sizes.vocabulary,
        tie_word_embeddings=sizes.tied_embeddings,
        pad_token_id=None,
    )
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(settings)
    assert sum(parameter.numel() for parameter in built.parameters()) == sizes.parameters


@pytest.mark.parametrize(
    ("name", "published"),
    [("qwen2.5-7b", 7_615_616_512), ("qwen3-8b", 8_190_735_360), ("llama3.1-8b", 8_030_261_248)],
)
def test_the_parameters_are_the_published_ones(name: str, published: int) -> None:
    assert {model.name: model.sizes.parameters for model in SHIPPED}[name] == published


def test_nano_s_file_says_what_its_folder_holds() -> None:
    nano = next(model for model in SHIPPED if model.name == "nano")
    assert nano.sizes == read_sizes(REPOSITORY / "examples/nano/policy")


# ----------------------------------------------------------------------------- every pair is a sensible run


KINDS = ("grpo", "ppo", "sft")
"""With siblings, with a critic, offline."""
OF_THEIR_OWN_DATA = ("pt", "rm", "dpo", "kto", "orpo", "simpo")
"""They learn from texts or preferences, which only nano's data set has beside its questions."""
LAYOUTS = ("nano", "smollm2-135m", "qwen2.5-0.5b", "qwen2.5-7b")
"""Of a model's machines: each kind is among them."""


def each_pair() -> pytest.MarkDecorator:
    """Every algorithm with one model of each layout, every model with one algorithm of each kind; the rest is slow."""
    pairs = [
        (algorithm, model)
        for algorithm in OPTIONS["algo"]
        for model in SHIPPED
        if model.name == "nano" or algorithm not in OF_THEIR_OWN_DATA
    ]
    return pytest.mark.parametrize(
        ("algorithm", "model"),
        [
            pytest.param(
                algorithm,
                model,
                id=f"{algorithm}-{model.name}",
                marks=() if algorithm in KINDS or model.name in LAYOUTS else pytest.mark.slow,
            )
            for algorithm, model in pairs
        ],
    )


@each_pair()
def test_every_algorithm_runs_on_every_model_without_another_word(algorithm: str, model: ShippedModel) -> None:
    config = load_config([f"algo={algorithm}", f"model={model.name}"])

    assert isinstance(config.data, OnlineData if isinstance(config.algo, Algorithm) else OfflineData)
    assert isinstance(config.data, ArithmeticData if model.name == "nano" else Gsm8kData)
    assert config.model.path.endswith(model.path)
    assert config.sizes == model.sizes
    assert config.train.tokens_per_micro_batch >= 1024
    assert config.rollout.max_response_tokens <= config.model.context_length - (8 if model.name == "nano" else 768)
    on_cpu = model.name in ("nano", "smollm2-135m")
    assert config.cluster.device is (Device.CPU if on_cpu else Device.CUDA)
    assert config.model.precision is (Precision.FLOAT32 if on_cpu else Precision.BFLOAT16)
    if config.algo.online:
        team = config.team()
        assert team.has_critic is (algorithm == "ppo") and team.reference is (config.algo.kl_coef > 0)


@pytest.mark.parametrize("algorithm", OF_THEIR_OWN_DATA)
def test_who_learns_from_other_rows_says_which(algorithm: str) -> None:
    with pytest.raises(ConfigError, match=r"learns from \w+, and Gsm8kData has none"):
        load_config([f"algo={algorithm}", "model=qwen2.5-0.5b"])


def test_a_large_model_moves_the_defaults() -> None:
    config = load_config(["algo=grpo", "model=qwen2.5-7b"])

    assert config.run.name == "grpo-qwen2.5-7b-gsm8k"
    assert config.model.path == "Qwen/Qwen2.5-7B-Instruct"
    assert config.reward.function == "rewards.gsm8k:correct"
    assert (config.model.context_length, config.rollout.max_response_tokens) == (2048, 1024)
    assert config.model.gradient_checkpointing
    assert config.train.learning_rate == 1e-6
    assert config.train.zero_stage == 3
    assert (config.train.ranks, config.rollout.engines) == (4, 3)


@each_model("qwen3-0.6b", "qwen3-8b", "deepseek-r1-distill-qwen-7b")
def test_a_model_that_thinks_may_answer_at_length(model: ShippedModel) -> None:
    assert load_config([f"model={model.name}"]).rollout.max_response_tokens == 4096


def test_a_path_without_a_model_s_name_takes_nothing_of_the_default_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    own = load_config([f"model.path={tmp_path}", "data.path=rows.jsonl"])
    assert (own.train.learning_rate, own.reward.function) == (1e-6, "rewards.gsm8k:correct")
    assert load_config([f"model.path={tmp_path}", "model=nano"]).train.learning_rate == 3e-4
    assert load_config([f"model.path={tmp_path}", "experiment=smollm2_sums"]).data.task == "chain_sum"
    with pytest.raises(ConfigError, match=r"model\.path has no value"):
        load_config(["model=own"])


def test_what_is_typed_wins_over_the_model() -> None:
    config = load_config(
        [
            "data=arithmetic",
            "cluster=cpu",
            "model=qwen2.5-7b",
            "rollout.max_response_tokens=16",
            "model.precision=float32",
            "train.learning_rate=2e-5",
        ]
    )
    assert config.data == ArithmeticData()
    assert config.reward.function == "rewards.number:exact"
    assert config.cluster.device is Device.CPU
    assert (config.train.ranks, config.rollout.engines) == (1, 1)
    assert config.rollout.max_response_tokens == 16
    assert config.model.precision is Precision.FLOAT32
    assert config.train.learning_rate == 2e-5


def test_an_algorithm_that_learns_from_another_kind_of_data_chooses_it_over_the_model(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "algo/later.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: files\nalgo:\n  _target_: engine.algorithms.sft.SFT\n"
    )

    with pytest.raises(
        ConfigError, match=r"data\.path has no value\.\n  Type data\.path=<a text, or a list of texts>\."
    ):
        compose(["algo=later", "model=qwen2.5-7b"], Config, conf=conf, open_sections=OPEN_SECTIONS)
    argv = ["algo=later", "model=qwen2.5-7b", "data.path=rows.jsonl"]
    composed = compose(argv, Config, conf=conf, open_sections=OPEN_SECTIONS)
    assert composed.choices["data"] == "files"
    assert composed.config.model.path == "Qwen/Qwen2.5-7B-Instruct"


def test_offline_the_solutions_are_imitated_without_a_calculator_s_notes(tmp_path: Path) -> None:
    solution = "He has 48/2 = <<48/2=24>>24 left.\n#### 24"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "How many?", "answer": solution}) + "\n")
    data = Gsm8kData(path=str(rows), held_out=0, instruction="Think.")

    (conversation,) = data.conversations(Split.TRAIN)
    (question,) = data.questions(Split.TRAIN)
    assert conversation.messages[:-1] == question.messages
    assert conversation.messages[-1].role == "assistant"
    assert conversation.messages[-1].content == "He has 48/2 = 24 left.\n#### 24"


def test_offline_the_sums_are_true_and_the_held_out_ones_the_same_as_online() -> None:
    data = ArithmeticData(largest=9, held_out=20)
    for split in Split:
        answers = [(c.id, c.messages[-1].content) for c in data.conversations(split)]
        assert answers == [(q.id, q.answer) for q in data.questions(split)]


# ----------------------------------------------------------------------------- the sizes are those of the path


def write_model(folder: Path, **settings: object) -> Path:
    """A folder with an architecture and weights that nobody reads."""
    usual = {
        "model_type": "qwen2",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(usual | settings))
    (folder / "pytorch_model.bin").write_bytes(b"")
    return folder


def test_a_folder_s_own_config_wins_over_the_model_s_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine")
    sizes = load_config(["model=qwen2.5-7b", f"model.path={folder}"]).sizes

    assert (sizes.layers, sizes.hidden, sizes.vocabulary) == (2, 64, 100)
    assert (sizes.key_value_heads, sizes.head_dimension) == (4, 16)
    assert sizes.parameters == 2 * 64 * (4 * 64 + 3 * 256) + 2 * 100 * 64


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"tie_word_embeddings": True}, True),
        ({"model_type": "gemma2"}, True),
        ({"model_type": "gemma2", "tie_word_embeddings": False}, False),
    ],
)
def test_a_head_is_tied_as_the_architecture_has_it_unless_the_folder_says(
    settings: dict[str, object], expected: bool, tmp_path: Path
) -> None:
    assert read_sizes(write_model(tmp_path / "mine", **settings)).tied_embeddings is expected


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3"])
def test_the_tied_architectures_are_transformers_s(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    sizes = read_sizes(write_model(tmp_path / "mine", model_type=model_type))
    assert sizes.tied_embeddings is AutoConfig.for_model(model_type).tie_word_embeddings


def test_the_parameters_of_a_folder_are_those_that_its_weights_hold(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = write_model(tmp_path / "mine", num_local_experts=8)
    assert not read_sizes(folder).are_known  # experts are not counted by a dense model's formula
    save_file({"a": np.zeros((3, 5), np.float16)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros(7, np.float32)}, folder / "model-00002-of-00002.safetensors", {"format": "pt"})
    assert read_sizes(folder).parameters == 22


@pytest.mark.parametrize("content", [b"", b"\x00", b"version https://git-lfs.github.com/spec/v1\n"])
def test_weights_that_are_cut_off_are_not_counted(content: bytes, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine")
    counted = read_sizes(folder)
    (folder / "model.safetensors").write_bytes(content)
    assert read_sizes(folder) == counted


def test_a_config_that_is_not_json_is_told(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine")
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read") as caught:
        load_config([f"model.path={folder}"])
    assert f"set by: model.path={folder} on the command line" in str(caught.value)


def test_a_hub_id_has_the_sizes_of_its_file_whatever_model_is_chosen() -> None:
    assert load_config(["model.path=Qwen/Qwen3-8B"]).sizes == load_config(["model=qwen3-8b"]).sizes


def test_a_hub_id_without_a_file_has_no_sizes_unless_they_are_typed() -> None:
    assert load_config(["model=qwen2.5-7b", "model.path=somebody/something"]).sizes == ModelSizes()
    typed = load_config(["model=qwen2.5-7b", "model.path=somebody/something", "sizes.parameters=7000000000"])
    assert typed.sizes.parameters == 7_000_000_000
    assert typed.sizes.layers == 28
