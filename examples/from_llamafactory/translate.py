"""LLaMA-Factory's yaml as a command of ours, key by key.

python examples/from_llamafactory/translate.py qwen3_lora_sft.yaml     # prints the command, and what to know of it
python examples/from_llamafactory/translate.py --table                 # the table of this folder's README
"""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

Yaml = Mapping[str, object]
"""LLaMA-Factory's settings: flat."""


class NotTranslated(Exception):
    """A key, or a value, that has no counterpart here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one key of theirs becomes."""

    ours: str
    """As the table shows it."""
    translate: Callable[[object, Yaml], dict[str, object]]
    """(value, all their settings) -> our overrides."""


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def same(key: str) -> Rule:
    return Rule(ours=key, translate=lambda value, _: {key: value})


def choice(key: str, values: Mapping[object, object]) -> Rule:
    def translate(value: object, _: Yaml) -> dict[str, object]:
        if value not in values:
            raise NotTranslated(f"{value} is none of {', '.join(map(str, values))}")
        return {key: values[value]}

    told = ", ".join(f"{theirs} = {ours}" for theirs, ours in values.items())
    return Rule(ours=f"{key}: {told}", translate=translate)


def flag(overrides: dict[str, object]) -> Rule:
    """Something that is on or off, and off here when it is not said."""
    told = " ".join(f"{key}={_text(value)}" for key, value in overrides.items())
    return Rule(ours=f"true: {told}", translate=lambda value, _: dict(overrides) if value else {})


def needless(reason: str) -> Rule:
    return Rule(ours=f"- ({reason})", translate=lambda value, _: {})


def told(ours: str, translate: Callable[[object, Yaml], dict[str, object]]) -> Rule:
    return Rule(ours=ours, translate=translate)


# ----------------------------------------------------------------------------- values that several keys decide


def _algorithm(stage: object, theirs: Yaml) -> dict[str, object]:
    if stage == "dpo":
        return _preference_loss(theirs.get("pref_loss", "sigmoid"), theirs)
    if stage not in ("pt", "sft", "rm", "kto", "ppo"):
        raise NotTranslated(f"{stage} is none of pt, sft, rm, ppo, dpo, kto")
    return {"algo": stage}


def _preference_loss(loss: object, theirs: Yaml) -> dict[str, object]:
    if loss in ("orpo", "simpo"):
        return {"algo": loss}
    if loss not in ("sigmoid", "hinge", "ipo"):
        raise NotTranslated(f"{loss} is none of sigmoid, hinge, ipo, orpo, simpo")
    return {"algo": "dpo"} | ({"algo.loss_type": loss} if loss != "sigmoid" else {})


def _tuning(kind: object, theirs: Yaml) -> dict[str, object]:
    quantized = "q" if theirs.get("quantization_bit") else ""
    if kind not in ("full", "freeze", "lora", "oft") or (quantized and kind in ("full", "freeze")):
        raise NotTranslated(f"{kind} is none of full, freeze, lora, oft, of which the last two may be quantized")
    return {"tuning": f"{quantized}{kind}"}


def _bits(bits: object, theirs: Yaml) -> dict[str, object]:
    if bits == 8:
        return {"tuning.quantization": "int8"}
    if bits != 4:
        raise NotTranslated(f"{bits} is neither 4 nor 8")
    return {"tuning.quantization": theirs["quantization_type"]} if "quantization_type" in theirs else {}


def _quantized_by(method: object, theirs: Yaml) -> dict[str, object]:
    if method != "bnb":
        raise NotTranslated(f"{method} is not bnb")
    return {}


def _beta(beta: object, theirs: Yaml) -> dict[str, object]:
    is_orpo = theirs.get("pref_loss") == "orpo"
    return {"algo.odds_coef" if is_orpo else "algo.beta": beta}


def _gamma(gamma: object, theirs: Yaml) -> dict[str, object]:
    return {"algo.gamma_beta_ratio": float(str(gamma)) / float(str(theirs.get("pref_beta", 0.1)))}


def _names(value: object) -> list[str]:
    parts = value if isinstance(value, list) else str(value).split(",")
    return [str(part).strip() for part in parts]


def _targets(key: str) -> Callable[[object, Yaml], dict[str, object]]:
    return lambda value, _: {} if value == "all" else {key: _names(value)}


def _data(names: object, theirs: Yaml) -> dict[str, object]:
    folder = theirs.get("dataset_dir", "data")
    return {"data": "files", "data.path": f"{folder}/dataset_info.json", "data.names": _names(names)}


def _rows_a_step(rows: object, theirs: Yaml) -> dict[str, object]:
    a_rank = int(str(theirs.get("per_device_train_batch_size", 8)))
    return {"train.examples_per_step": a_rank * int(str(theirs.get("gradient_accumulation_steps", 1)))}


def _save_folder(folder: object, theirs: Yaml) -> dict[str, object]:
    path = Path(str(folder))
    return {"run.folder": str(path.parent), "run.name": path.name}


def _deepspeed(path: object, theirs: Yaml) -> dict[str, object]:
    name = Path(str(path)).stem
    stages = [stage for stage in range(4) if f"z{stage}" in name or f"zero{stage}" in name]
    if len(stages) != 1 or "offload" in name:
        raise NotTranslated(f"no ZeRO stage can be told from the name of {path}: set train.zero_stage by hand")
    return {"train.zero_stage": stages[0]}


def _evaluated(strategy: object, theirs: Yaml) -> dict[str, object]:
    if strategy == "steps":
        return {"evaluation.every_steps": theirs.get("eval_steps", 500)}
    if strategy not in ("no", "epoch"):
        raise NotTranslated(f"{strategy} is none of no, steps, epoch")
    return {}


RULES: dict[str, Rule] = {
    "model_name_or_path": same("model.path"),
    "adapter_name_or_path": told(
        "tuning.adapters; the last one learns on, unless create_new_adapter",
        lambda value, theirs: {
            "tuning.adapters": _names(value),
            "tuning.continue_last": not theirs.get("create_new_adapter", False),
        },
    ),
    "create_new_adapter": needless("see adapter_name_or_path"),
    "trust_remote_code": needless("code of a model's folder is never run"),
    "stage": told("algo; dpo with pref_loss: dpo, orpo or simpo", _algorithm),
    "do_train": needless("a run trains"),
    "finetuning_type": told("tuning; with quantization_bit: qlora, qoft", _tuning),
    "quantization_bit": told("4: tuning=qlora or qoft; 8: also tuning.quantization=int8", _bits),
    "quantization_method": told("bnb: nothing to set", _quantized_by),
    "quantization_type": needless("see quantization_bit: tuning.quantization=nf4 or fp4"),
    "double_quantization": same("tuning.double_quantization"),
    "lora_rank": same("tuning.rank"),
    "lora_alpha": same("tuning.alpha"),
    "lora_dropout": same("tuning.dropout"),
    "lora_target": told("all: nothing to set; else tuning.targets", _targets("tuning.targets")),
    "additional_target": told("tuning.also_train", _targets("tuning.also_train")),
    "use_rslora": same("tuning.rank_stabilized"),
    "use_dora": same("tuning.dora"),
    "pissa_init": flag({"tuning.init": "pissa"}),
    "freeze_trainable_layers": same("tuning.layers"),
    "freeze_trainable_modules": told("all: nothing to set; else tuning.modules", _targets("tuning.modules")),
    "oft_block_size": same("tuning.block_size"),
    "oft_target": told("all: nothing to set; else tuning.targets", _targets("tuning.targets")),
    "module_dropout": same("tuning.dropout"),
    "pref_loss": needless("see stage"),
    "pref_beta": told("algo.beta; of orpo algo.odds_coef", _beta),
    "pref_ftx": same("algo.sft_coef"),
    "simpo_gamma": told("algo.gamma_beta_ratio = simpo_gamma / pref_beta", _gamma),
    "dpo_label_smoothing": same("algo.label_smoothing"),
    "ld_alpha": same("algo.length_desensitization"),
    "kto_chosen_weight": same("algo.desirable_weight"),
    "kto_rejected_weight": same("algo.undesirable_weight"),
    "neftune_noise_alpha": same("algo.neftune_alpha"),
    "ref_model": needless("the model that learns is its own reference until it learns"),
    "reward_model": same("reward.model"),
    "template": needless("the tokenizer's own chat template; another one is a file: rendering.chat_template"),
    "dataset": told("data=files data.path=<dataset_dir>/dataset_info.json data.names=[...]", _data),
    "dataset_dir": needless("see dataset"),
    "eval_dataset": told("data.held_out_names", lambda value, _: {"data.held_out_names": _names(value)}),
    "media_dir": same("data.images_path"),
    "val_size": same("data.held_out"),
    "max_samples": same("data.max_rows"),
    "cutoff_len": told(
        "model.context_length, rendering.overlong=truncate",
        lambda value, theirs: (
            {"model.context_length": value}
            | ({"rendering.overlong": "truncate"} if theirs.get("stage") != "ppo" else {"rendering.overlong": "drop"})
        ),
    ),
    "mix_strategy": choice(
        "data.mix",
        {"concat": "concat", "interleave_under": "interleave_under", "interleave_over": "interleave_over"},
    ),
    "interleave_probs": told("data.weights", lambda value, _: {"data.weights": _names(value)}),
    "streaming": same("data.streaming"),
    "buffer_size": same("data.shuffle_rows"),
    "packing": flag({"train.packing": True}),
    "neat_packing": flag({"train.packing": True}),
    "train_on_prompt": same("algo.train_on_prompt"),
    "mask_history": flag({"algo.turns": "last"}),
    "overwrite_cache": needless("nothing is cached"),
    "preprocessing_num_workers": needless("rows are read in one process"),
    "dataloader_num_workers": needless("rows are in memory before the run starts"),
    "output_dir": told("run.folder, run.name", _save_folder),
    "overwrite_output_dir": flag({"run.resume": "never"}),
    "resume_from_checkpoint": needless("the same command goes on after the newest checkpoint"),
    "run_name": needless("the folder's name is the run's"),
    "logging_steps": needless("every step is logged"),
    "plot_loss": needless("curves are in tensorboard/ and in the terminal"),
    "save_steps": same("run.save_every_steps"),
    "save_total_limit": same("run.keep_checkpoints"),
    "save_only_model": needless("a checkpoint can always be gone on from"),
    "report_to": told(
        "tensorboard: run.tensorboard", lambda value, _: {"run.tensorboard": "tensorboard" in _names(value)}
    ),
    "per_device_train_batch_size": told("x gradient_accumulation_steps = train.examples_per_step", _rows_a_step),
    "gradient_accumulation_steps": told("see per_device_train_batch_size", _rows_a_step),
    "per_device_eval_batch_size": needless("train.tokens_per_micro_batch bounds every pass"),
    "learning_rate": same("train.learning_rate"),
    "num_train_epochs": same("run.epochs"),
    "max_steps": same("run.steps"),
    "lr_scheduler_type": choice("train.schedule", {"constant": "constant", "linear": "linear", "cosine": "cosine"}),
    "warmup_ratio": same("train.warmup_share"),
    "warmup_steps": same("train.warmup_updates"),
    "weight_decay": same("train.weight_decay"),
    "max_grad_norm": same("train.max_grad_norm"),
    "bf16": flag({"model.precision": "bfloat16"}),
    "gradient_checkpointing": same("model.gradient_checkpointing"),
    "deepspeed": told("train.zero_stage", _deepspeed),
    "ddp_timeout": same("cluster.call_timeout_s"),
    "seed": same("run.seed"),
    "eval_strategy": told("steps: evaluation.every_steps=<eval_steps>", _evaluated),
    "eval_steps": needless("see eval_strategy"),
}
"""Their key -> ours."""


def translate(theirs: Yaml) -> dict[str, object]:
    """Our overrides, groups first. Raises NotTranslated for the first key that has no counterpart, with the nearest."""
    ours: dict[str, object] = {}
    for key, value in theirs.items():
        if value is None:
            continue
        if key not in RULES:
            near = difflib.get_close_matches(key, RULES, n=1)
            raise NotTranslated(f"{key}: not translated" + (f"; did you mean {near[0]}?" if near else ""))
        try:
            ours |= RULES[key].translate(value, theirs)
        except NotTranslated as problem:
            raise NotTranslated(f"{key}: {problem}") from None
    ours |= _tuning(theirs.get("finetuning_type", "lora"), theirs)
    if not {"val_size", "eval_dataset"} & theirs.keys() and "data" in ours:
        # Nothing is held out there unless it is said.
        ours["data.held_out"] = 0
    if "max_steps" in theirs:
        ours.pop("run.epochs", None)
    return dict(sorted(ours.items(), key=lambda pair: "." in pair[0]))


def command(overrides: Mapping[str, object]) -> str:
    words = [shlex.quote(f"{key}={_text(value)}") for key, value in overrides.items()]
    return " \\\n    ".join(["python -m engine.main", *words])


def table() -> str:
    """Markdown: their keys, in the order of their files, and ours."""
    rows = [f"| `{key}` | {rule.ours} |" for key, rule in RULES.items()]
    return "\n".join(["| LLaMA-Factory | here |", "|---|---|", *rows])


def main(arguments: list[str]) -> int:
    if arguments == ["--table"]:
        print(table())
        return 0
    if len(arguments) != 1:
        print(__doc__)
        return 2
    theirs = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        print(command(translate(theirs)))
    except NotTranslated as problem:
        print(f"{arguments[0]}: {problem}", file=sys.stderr)
        return 2
    for key in theirs:
        if RULES[key].ours.startswith("- ("):
            print(f"# {key}: {RULES[key].ours[3:-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
