"""What cannot be learned is told before Ray starts; what is learned, and what travels, is said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.config import Config, ConfigError, load_config
from engine.tuning_checks import told


def load(*overrides: str) -> Config:
    return load_config(["model=nano", *overrides])


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return str(caught.value)


def adapter_in(folder: Path, **settings: object) -> str:
    """A folder that looks like an adapter's."""
    plain = {"peft_type": "LORA", "r": 8, "init_lora_weights": True, "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(plain | settings))
    (folder / "adapter_model.safetensors").touch()
    return str(folder)


@pytest.mark.parametrize(
    ("typed", "words", "advice"),
    [
        (["tuning=lora", "tuning.rank=0"], "tuning.rank is 0.", "such as 8"),
        (["tuning=lora", "tuning.alpha=-1"], "tuning.alpha is -1.0.", "twice the rank"),
        (["tuning=lora", "algo=sft", "data=arithmetic_demos", "tuning.dropout=1"], "tuning.dropout is 1.0", "0.05"),
        (["tuning=oft", "tuning.block_size=1"], "tuning.block_size is 1", "such as 32"),
        (["tuning.quantization=nf4"], "quantization is nf4 and tuning.method is full", "tuning=qlora"),
        (["tuning=freeze", "tuning.quantization=int8"], "quantization is int8 and tuning.method is freeze", "qlora"),
        (["tuning=oft", "tuning.dora=true"], "tuning.dora is True, which says nothing to tuning.method=oft", "lora"),
        (["tuning=oft", "tuning.init=pissa"], "tuning.init is pissa, which says nothing to tuning.method=oft", "lora"),
        (["tuning=oft", "tuning.rank=4"], "tuning.rank is 4, which says nothing to tuning.method=oft", "lora"),
        (["tuning=lora", "tuning.layers=3"], "tuning.layers is 3, which says nothing to tuning.method=lora", "freeze"),
        (["tuning.targets=[q_proj]"], "which says nothing to tuning.method=full", "lora or oft"),
        (["tuning=qlora", "tuning.init=pissa"], "tuning.init is pissa and tuning.quantization is nf4", "init=zero"),
        (["tuning=lora", "tuning.init=pissa", "tuning.dora=true"], "init is pissa and tuning.dora is true", "one of"),
        (["tuning=qlora", "train.zero_stage=3"], "is nf4 and train.zero_stage is 3", "train.zero_stage=2"),
        (["tuning=lora", "tuning.init=pissa", "train.zero_stage=3"], "is pissa and train.zero_stage is 3", "=2"),
        (["tuning=lora", "tuning.dropout=0.1"], "tuning.dropout is 0.1, and GRPO compares", "tuning.dropout=0"),
        (
            ["tuning=lora", "algo.kl_coef=0.1", "algo.reference_refresh.every_steps=5"],
            "algo.reference_refresh.every_steps is 5 and tuning.method is lora",
            "tuning=full",
        ),
        (["tuning=freeze", "tuning.layers=9"], "tuning.layers is 9, and", "between -4 and 4"),
        (["tuning=oft", "tuning.block_size=48"], "tuning.block_size is 48, and the matrices of", "block_size=16"),
        (["tuning=lora", "tuning.also_train=[embed_tokens]"], "also_train names embed_tokens, and the head", "freeze"),
        (
            ["tuning=lora", "tuning.continue_last=true"],
            "tuning.continue_last is true, and tuning.adapters",
            "adapters=[",
        ),
        (["tuning=lora", "tuning.adapters=[nowhere]"], "tuning.adapters: nowhere holds no adapter_config.json", "PEFT"),
    ],
)
def test_an_impossible_tuning_is_refused_with_what_to_set(typed: list[str], words: str, advice: str) -> None:
    message = refusal(*typed)
    assert words in message and advice in message and "set by: " in message


def test_an_adapter_of_another_kind_cannot_be_gone_on_with(tmp_path: Path) -> None:
    path = adapter_in(tmp_path)
    message = refusal("tuning=oft", f"tuning.adapters=[{path}]", "tuning.continue_last=true")
    assert "tuning.continue_last is true, tuning.method is oft, and" in message and "Set tuning=lora" in message
    assert load("tuning=lora", f"tuning.adapters=[{path}]", "tuning.continue_last=true").tuning.continue_last


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], r".*(q_proj|lm_head)"], ids=["names", "pattern"])
def test_an_adapter_with_dora_on_the_head_is_merged_and_not_gone_on_with(tmp_path: Path, targets: object) -> None:
    path = adapter_in(tmp_path, use_dora=True, target_modules=targets)
    message = refusal("tuning=lora", f"tuning.adapters=[{path}]", "tuning.continue_last=true")
    assert f"{path} holds DoRA on lm_head" in message and "Set tuning.continue_last=false" in message
    assert load("tuning=lora", f"tuning.adapters=[{path}]").tuning.adapters == [path]
    for others in ({"target_modules": ["q_proj"]}, {"use_dora": False}):
        adapter_in(tmp_path, **{"use_dora": True, "target_modules": targets} | others)
        assert load("tuning=lora", f"tuning.adapters=[{path}]", "tuning.continue_last=true").tuning.continue_last


@pytest.mark.parametrize("dropout", ["lora", "oft"])
def test_dropout_is_for_offline_stages(dropout: str) -> None:
    config = load(f"tuning={dropout}", "tuning.dropout=0.1", "algo=sft", "data=arithmetic_demos")
    assert config.tuning.dropout == 0.1


def test_every_shipped_tuning_is_one_that_nano_can_have() -> None:
    for name in ("full", "freeze", "lora", "qlora", "oft", "qoft"):
        for algo in ("grpo", "ppo"):
            assert load(f"tuning={name}", f"algo={algo}")


def test_a_frozen_copy_is_kept_only_where_the_model_without_its_adapter_is_another(tmp_path: Path) -> None:
    path = adapter_in(tmp_path)
    kept = {
        "tuning=full": True,
        "tuning=freeze": True,
        "tuning=lora": False,
        "tuning=qoft": False,
        f"tuning=lora tuning.adapters=[{path}]": False,
        f"tuning=lora tuning.adapters=[{path}] tuning.continue_last=true": True,
        "tuning=lora tuning.init=pissa": True,
    }
    for typed, is_kept in kept.items():
        assert load("algo.kl_coef=0.1", *typed.split()).team().reference is is_kept, typed


def test_eight_bits_round_what_they_read_and_may_differ_more_from_the_engine() -> None:
    int8 = ("tuning=lora", "tuning.quantization=int8")
    exact, four, eight = (load(*typed).bounds for typed in (("tuning=lora",), ("tuning=qlora",), int8))
    assert exact == four
    assert eight.logprob_gap_mean > exact.logprob_gap_mean and eight.logprob_gap_max > exact.logprob_gap_max
    assert load(*int8, "checks.logprob_gap_mean=0.001").bounds.logprob_gap_mean == 0.001


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("tuning=full", ""),
        ("tuning=freeze", "freeze: the whole model travels to the rollout engines"),
        ("tuning=lora", "lora: only the adapter's tensors travel to the rollout engines"),
        (
            "tuning=qlora algo.kl_coef=0.1",
            "lora on nf4: only the adapter's tensors travel to the rollout engines, the dequantized base once before, "
            "and the reference is the model without it",
        ),
        ("tuning=qoft", "oft on nf4: rollout engines cannot serve oft apart, so it is merged and all weights travel"),
        ("tuning=lora tuning.dora=true", "lora: rollout engines cannot serve dora apart"),
        ("tuning=lora tuning.init=pissa algo.kl_coef=0.1", "the reference is a frozen copy of the model"),
        ("tuning=lora algo=sft data=arithmetic_demos", "lora: the rest of the model stays as it is"),
    ],
)
def test_what_is_learned_and_what_travels_is_told_in_one_line(typed: str, said: str) -> None:
    line = told(load(*typed.split()))
    assert said in line and (line == "") is (said == "")
