"""What a tuning changes and what it leaves alone, on a tiny model; plain transformers and PEFT alone are witnesses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from workers.adapters import AdapterError, read_adapter, served_rank, why_merged
from workers.config import LoraInit, ModelConfig, Quantization, TuningConfig, TuningMethod
from workers.exporting import write_model
from workers.model import load_language_model, load_value_model
from workers.tuned_weights import shapes_of, whole_weights
from workers.tuning import TuningError, adapter_off, tune

TOKENS_1S = torch.arange(5, 45)[None]
LORA, OFT, FREEZE = TuningMethod.LORA, TuningMethod.OFT, TuningMethod.FREEZE
NF4, FP4, INT8 = Quantization.NF4, Quantization.FP4, Quantization.INT8
EXACT = {
    "full": TuningConfig(),
    "freeze": TuningConfig(method=FREEZE, layers=1),
    "lora": TuningConfig(method=LORA, rank=4),
    "lora-attention": TuningConfig(method=LORA, targets=["q_proj", "v_proj"]),
    "rslora": TuningConfig(method=LORA, rank=4, rank_stabilized=True),
    "dora": TuningConfig(method=LORA, rank=4, dora=True),
    "oft": TuningConfig(method=OFT, block_size=16),
}
PISSA = {"pissa": TuningConfig(method=LORA, rank=4, init=LoraInit.PISSA)}
QUANTIZED = {
    "qlora": TuningConfig(method=LORA, rank=4, quantization=NF4),
    "qlora-fp4": TuningConfig(method=LORA, rank=4, quantization=FP4, double_quantization=False),
    "qdora": TuningConfig(method=LORA, rank=4, quantization=NF4, dora=True),
    "qoft": TuningConfig(method=OFT, block_size=16, quantization=NF4),
}
EIGHT_BITS = {
    "lora-int8": TuningConfig(method=LORA, rank=4, quantization=INT8),
    "oft-int8": TuningConfig(method=OFT, block_size=16, quantization=INT8),
}
ADAPTERS = {name: tuning for name, tuning in (EXACT | PISSA).items() if tuning.has_adapter}
EVERY = EXACT | PISSA | QUANTIZED | EIGHT_BITS


def each(cases: dict[str, TuningConfig]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tuning", cases.values(), ids=cases)


@pytest.fixture(scope="module")
def load(folder: str) -> Callable[..., PreTrainedModel]:
    def load(tuning: TuningConfig, *, seed: int = 0, value: bool = False) -> PreTrainedModel:
        config = ModelConfig(path=folder)
        model = load_value_model(config) if value else load_language_model(config, seed=0)
        tune(model, tuning, seed=seed)
        return model.eval()

    return load


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(TOKENS_1S).logits


def learned(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def everything(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every number that the model holds, the scales of quantized matrices included."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def learn(model: PreTrainedModel, *, steps: int = 2, rate: float = 1e-2) -> PreTrainedModel:
    optimizer = torch.optim.AdamW(learned(model).values(), lr=rate)
    for _ in range(steps):
        output = model.train()(TOKENS_1S).logits
        loss = (output - 1).square().mean() if output.shape[-1] == 1 else output.logsumexp(-1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def plain_from(folder: str, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert dict(model.named_parameters()).keys() == weights.keys()
    model.load_state_dict(weights)
    return model


def linear_names(model: PreTrainedModel) -> list[str]:
    modules = dict(model.named_modules())
    return [name for name, module in modules.items() if isinstance(module, torch.nn.Linear) and name != "lm_head"]


# ----------------------------------------------------------------------------- what is learned


@each(EVERY)
def test_learning_changes_every_intended_tensor_and_no_bit_of_another(load, tuning: TuningConfig) -> None:
    model = load(tuning)
    before, moves = everything(model), learned(model).keys()
    after = everything(learn(model))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(moves)
    assert all(torch.isfinite(after[name]).all() for name in moves)


@each(ADAPTERS | QUANTIZED)
def test_an_adapter_is_all_that_is_learned_of_a_language_model(load, tuning: TuningConfig) -> None:
    assert all(".lora_" in name or ".oft_R." in name for name in learned(load(tuning)))


def test_an_adapter_lies_on_every_linear_layer_but_the_head_unless_targets_are_named(load) -> None:
    plain = load(TuningConfig())
    found = {name.split(".lora_")[0] for name in learned(load(EXACT["lora"]))}
    assert found == set(linear_names(plain))
    named = {name.split(".lora_")[0].rpartition(".")[2] for name in learned(load(EXACT["lora-attention"]))}
    assert named == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("layers", "modules", "beginnings"),
    [
        (1, [], ["model.layers.1."]),
        (-1, [], ["model.layers.0."]),
        (2, ["mlp"], ["model.layers.0.mlp.", "model.layers.1.mlp."]),
        (1, ["q_proj", "lm_head"], ["model.layers.1.self_attn.q_proj.", "lm_head."]),
        (0, ["embed_tokens"], ["model.embed_tokens."]),
    ],
)
def test_freeze_learns_the_named_parts_of_the_last_or_first_layers(
    load, layers: int, modules: list[str], beginnings: list[str]
) -> None:
    plain = load(TuningConfig())
    model = load(TuningConfig(method=FREEZE, layers=layers, modules=modules))
    assert list(learned(model)) == [name for name, _ in plain.named_parameters() if name.startswith(tuple(beginnings))]


@each(EVERY)
def test_a_head_that_gives_a_score_starts_at_zero_and_is_learned_whatever_the_method(
    load, tuning: TuningConfig
) -> None:
    model = load(tuning, value=True)
    weights = dict(whole_weights(model))
    assert weights["score.weight"].shape == (1, 32) and not weights["score.weight"].any()
    learn(model)
    assert dict(whole_weights(model))["score.weight"].all()


@pytest.mark.parametrize("method", [LORA, OFT])
def test_modules_beside_an_adapter_are_learned_as_they_are(load, folder: str, method: TuningMethod) -> None:
    model = load(TuningConfig(method=method, block_size=16, also_train=["embed_tokens", "norm"]))
    before = dict(whole_weights(load(TuningConfig())))
    with adapter_off(learn(model)):
        assert torch.equal(logits(model), logits(load(TuningConfig())))
    after = dict(whole_weights(model))
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert not torch.equal(before[name], after[name])
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert gap(logits(plain_from(folder, after)), logits(model)) < 1e-4


# ----------------------------------------------------------------------------- where it starts


@each(EXACT)
def test_a_tuned_model_says_at_first_bit_for_bit_what_the_plain_one_says(load, tuning: TuningConfig) -> None:
    assert torch.equal(logits(load(tuning)), logits(load(TuningConfig())))


def test_pissa_starts_from_the_plain_model_up_to_rounding(load) -> None:
    model, plain = load(PISSA["pissa"]), load(TuningConfig())
    assert gap(logits(model), logits(plain)) < 1e-4
    with adapter_off(model):
        assert gap(logits(model), logits(plain)) > 1e-2, "its base is not the plain model any more"


@each(ADAPTERS | QUANTIZED)
def test_with_its_adapter_off_a_trained_model_is_the_base_bit_for_bit(load, tuning: TuningConfig) -> None:
    model = load(tuning)
    with adapter_off(model):
        before = logits(model)
    start = logits(learn(model))
    with adapter_off(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), start) and gap(start, before) > 1e-3


def test_an_adapters_random_numbers_come_from_the_seed_alone(load) -> None:
    torch.manual_seed(99)
    one, same, other = (learned(load(EXACT["lora"], seed=seed)) for seed in (3, 3, 4))
    firsts = [name for name in one if ".lora_A." in name]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in firsts)


@pytest.mark.parametrize(
    ("tuning", "scale"),
    [
        (TuningConfig(method=LORA, rank=4), 2.0),
        (TuningConfig(method=LORA, rank=4, alpha=3.0), 0.75),
        (TuningConfig(method=LORA, rank=4, alpha=3.0, rank_stabilized=True), 1.5),
    ],
    ids=["twice-the-rank", "alpha", "root-of-rank"],
)
def test_a_low_rank_addition_is_scaled_by_alpha_over_rank_or_its_root(load, tuning: TuningConfig, scale: float) -> None:
    model = learn(load(tuning))
    state, name = everything(model), "model.layers.0.self_attn.q_proj"
    added = state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"]
    expected = state[f"{name}.base_layer.weight"] + scale * added
    assert gap(dict(whole_weights(model))[f"{name}.weight"], expected) < 1e-6


def test_oft_turns_a_matrix_by_an_orthogonal_one(load) -> None:
    model = learn(load(EXACT["oft"]), rate=0.1)
    before, after = (dict(whole_weights(model, merged=merged)) for merged in (False, True))
    for name in linear_names(load(TuningConfig())):
        old, new = before[f"{name}.weight"].double(), after[f"{name}.weight"].double()
        rotation = torch.linalg.lstsq(old, new).solution if old.shape[0] >= old.shape[1] else None
        # Rotating what a matrix reads keeps the length of its rows, and the angles between them.
        assert gap(old @ old.T, new @ new.T) < 1e-5
        assert gap(old, new) > 1e-2
        if rotation is not None:
            assert gap(rotation @ rotation.T, torch.eye(len(rotation), dtype=torch.float64)) < 1e-4


# ----------------------------------------------------------------------------- merged and apart


@each(EXACT | PISSA | QUANTIZED)
def test_the_merged_weights_in_a_plain_model_say_the_same_and_merging_changes_nothing(
    load, folder: str, tuning: TuningConfig
) -> None:
    model = learn(load(tuning))
    before, said = everything(model), logits(model)
    weights = {name: tensor.clone() for name, tensor in whole_weights(model)}
    assert gap(logits(plain_from(folder, weights)), said) < 1e-4
    after = everything(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(model), said)


@each(EXACT | PISSA | QUANTIZED | EIGHT_BITS)
def test_shapes_are_told_before_any_weight_is_read(load, tuning: TuningConfig) -> None:
    model = load(tuning)
    told = [(tensor.shape, tensor.dtype) for tensor in shapes_of(model)]
    assert told == [(tensor.shape, tensor.dtype) for _, tensor in whole_weights(model)]


def test_a_tied_head_is_the_embedding_in_merged_weights_too(tmp_path: Path) -> None:
    path = tiny.write_policy(tmp_path, tied=True)
    model = load_language_model(ModelConfig(path=path), seed=0).eval()
    tune(model, EXACT["lora"], seed=0)
    weights = {name: tensor.clone() for name, tensor in whole_weights(learn(model))}
    assert "lm_head.weight" not in weights
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    plain.load_state_dict(weights, strict=False)
    assert gap(logits(plain), logits(model)) < 1e-4
    with pytest.raises(TuningError, match="also_train names embed_tokens, and this model's head is its embedding"):
        tune(plain, TuningConfig(method=LORA, also_train=["embed_tokens"]), seed=0)


@each(ADAPTERS)
def test_an_adapters_folder_is_one_that_peft_loads_and_that_says_the_same(
    load, folder: str, tmp_path: Path, tuning: TuningConfig
) -> None:
    model = learn(load(tuning))
    write_model(model, tmp_path, as_adapter=True)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == folder and settings["task_type"] == "CAUSAL_LM"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert gap(logits(PeftModel.from_pretrained(base, str(tmp_path)).eval()), logits(model)) < 1e-5
    assert read_adapter(str(tmp_path)).method is tuning.method


def test_a_score_head_lies_in_the_adapters_folder(load, folder: str, tmp_path: Path) -> None:
    model = learn(load(EXACT["lora"], value=True))
    write_model(model, tmp_path, as_adapter=True)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    reloaded.config.pad_token_id = model.config.pad_token_id = 0
    assert gap(logits(reloaded), logits(model)) < 1e-5


@pytest.mark.parametrize("kind", ["lora", "oft"])
def test_adapters_of_earlier_runs_are_merged_in_order(load, folder: str, tmp_path: Path, kind: str) -> None:
    folders = []
    for number, rate in enumerate((1e-2, 3e-2)):
        write_model(learn(load(EXACT[kind], seed=number), rate=rate), tmp_path / str(number), as_adapter=True)
        folders.append(str(tmp_path / str(number)))
    base = dict(whole_weights(load(TuningConfig())))
    alone = [dict(whole_weights(load(TuningConfig(adapters=[one])))) for one in folders]
    both = dict(whole_weights(load(TuningConfig(adapters=folders))))
    by_peft = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for one in folders:
        by_peft = PeftModel.from_pretrained(by_peft, one).merge_and_unload()
    assert gap(logits(plain_from(folder, both)), logits(by_peft)) < 1e-5
    if kind == "lora":
        for name, weight in both.items():
            assert gap(weight, alone[0][name] + alone[1][name] - base[name]) < 1e-6


@each(ADAPTERS)
def test_the_last_adapter_goes_on_learning_where_it_stopped(load, tmp_path: Path, tuning: TuningConfig) -> None:
    first = learn(load(EXACT["lora"], seed=1))
    write_model(first, tmp_path / "first", as_adapter=True)
    merged = TuningConfig(adapters=[str(tmp_path / "first")])
    second = load(TuningConfig(**{**vars(tuning), "adapters": merged.adapters}), seed=2)
    write_model(learn(second), tmp_path / "second", as_adapter=True)
    both = [str(tmp_path / "first"), str(tmp_path / "second")]
    again = load(TuningConfig(method=tuning.method, adapters=both, continue_last=True))
    assert gap(logits(again), logits(second)) < 1e-5
    before = everything(again)
    after = everything(learn(again))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(learned(again)) == set(learned(second))


# ----------------------------------------------------------------------------- quantized bases


@each(QUANTIZED)
def test_four_bits_take_at_most_six_tenths_of_a_byte_a_number(load, tuning: TuningConfig) -> None:
    model, numbers = load(tuning), sum(m.weight.numel() for m in map(load(TuningConfig()).get_submodule, LINEAR))
    state = {name: tensor for name, tensor in model.state_dict().items() if ".base_layer.weight" in name}
    # The layout of a matrix is told in a text of its own, whatever its size.
    held = sum(t.numel() * t.element_size() for name, t in state.items() if "quant_state" not in name)
    held -= sum(t.numel() * t.element_size() for name, t in state.items() if "quant_map" in name)
    assert 0.5 * numbers < held <= 0.6 * numbers


LINEAR = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1)
    for part in (
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    )
]


def test_a_quantized_model_looks_and_learns_with_the_same_arithmetic(load) -> None:
    for tuning in QUANTIZED.values():
        model = load(tuning)
        looking = logits(model.eval())
        assert torch.equal(looking, logits(model.train()))
        assert torch.equal(looking, logits(model.eval()))


@each({"lora": EXACT["lora"], "oft": EXACT["oft"]})
def test_eight_bits_stay_close_to_the_plain_model(load, folder: str, tuning: TuningConfig) -> None:
    eight = TuningConfig(**{**vars(tuning), "quantization": INT8})
    model, plain = learn(load(eight)), load(TuningConfig())
    weights = {name: tensor.clone() for name, tensor in whole_weights(model)}
    assert gap(logits(plain_from(folder, weights)), logits(model)) < 0.15
    with adapter_off(model):
        assert gap(logits(model), logits(plain)) < 0.15


# ----------------------------------------------------------------------------- mistakes, and who serves it


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        (TuningConfig(method=FREEZE, layers=3), "tuning.layers is 3, and the model has 2 layers"),
        (TuningConfig(method=FREEZE, modules=["attn"]), "tuning.modules names attn"),
        (TuningConfig(method=LORA, targets=["query"]), "tuning.targets names query; the model's linear layers: q_proj"),
        (TuningConfig(method=LORA, also_train=["head"]), "tuning.also_train names head"),
        (TuningConfig(method=OFT, block_size=48), "tuning.block_size is 48, and"),
    ],
)
def test_what_the_model_does_not_have_is_named(load, tuning: TuningConfig, said: str) -> None:
    with pytest.raises(TuningError, match=said):
        load(tuning)


def test_a_folder_that_holds_no_adapter_or_another_ones_is_named(load, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"holds no adapter_config.json and no adapter_model.safetensors"):
        load(TuningConfig(adapters=[str(tmp_path)]))
    write_model(load(EXACT["lora"]), tmp_path, as_adapter=True)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["q_proj"]}))
    with pytest.raises(AdapterError, match=r"does not fit the model's adapter: missing .*unknown"):
        load(TuningConfig(method=LORA, adapters=[str(tmp_path)], continue_last=True))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "VERA"}))
    with pytest.raises(AdapterError, match="of kind VERA"):
        load(TuningConfig(adapters=[str(tmp_path)]))


def test_an_adapter_whose_head_cannot_be_read_is_refused_when_the_model_is_built(load, tmp_path: Path) -> None:
    config = LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    get_peft_model(load(TuningConfig()), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"lora\.layer\.Linear, whose logits are no sum of products"):
        load(TuningConfig(method=LORA, adapters=[str(tmp_path)], continue_last=True))
    merged = load(TuningConfig(method=LORA, adapters=[str(tmp_path)]))
    assert type(merged.get_output_embeddings()) is torch.nn.Linear


def test_only_plain_low_rank_additions_are_served_apart_from_the_base(load, tmp_path: Path) -> None:
    assert [served_rank(TuningConfig(method=LORA, rank=rank)) for rank in (1, 4, 8, 9, 512)] == [1, 8, 8, 16, 512]
    assert served_rank(QUANTIZED["qlora"]) == 8
    for tuning, why in [
        (TuningConfig(), "full"),
        (EXACT["oft"], "oft"),
        (EXACT["dora"], "dora"),
        (PISSA["pissa"], "pissa"),
        (TuningConfig(method=LORA, also_train=["norm"]), "also_train"),
        (TuningConfig(method=LORA, rank=1000), "a rank above 512"),
    ]:
        assert (served_rank(tuning), why_merged(tuning)) == (0, why)
    for name, rank in (("lora", 8), ("dora", 0)):
        write_model(load(EXACT[name]), tmp_path / name, as_adapter=True)
        continued = TuningConfig(method=LORA, rank=1000, adapters=[str(tmp_path / name)], continue_last=True)
        assert served_rank(continued) == rank
