"""LLaMA-Factory's yaml is a command of ours: every key is translated or refused, and what comes out is a run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.algorithms.dpo import DPO, LossType
from engine.algorithms.orpo import ORPO
from engine.algorithms.simpo import SimPO
from engine.config import load_config
from examples.from_llamafactory.translate import RULES, NotTranslated, command, table, translate
from workers.config import LoraInit, Overlong, Precision, Quantization, Schedule, TuningMethod

HERE = Path(__file__).parents[2] / "examples/from_llamafactory"
NANO = str(Path(__file__).parents[2] / "examples/nano/policy")
PROMISED = """
model_name_or_path adapter_name_or_path trust_remote_code template dataset dataset_dir cutoff_len max_samples val_size
packing neat_packing mask_history train_on_prompt stage finetuning_type lora_rank lora_alpha lora_dropout lora_target
freeze_trainable_layers freeze_trainable_modules oft_block_size oft_target quantization_bit quantization_method
pref_beta pref_loss pref_ftx simpo_gamma dpo_label_smoothing kto_chosen_weight kto_rejected_weight ref_model
reward_model
per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs max_steps lr_scheduler_type
warmup_ratio bf16 output_dir save_steps save_total_limit logging_steps report_to run_name resume_from_checkpoint
deepspeed eval_strategy eval_steps use_dora use_rslora neftune_noise_alpha
""".split()  # noqa: SIM905
"""What their users set (the keys of their example files)."""
STAGES = ("pt", "sft", "rm", "ppo", "dpo", "kto")
TUNINGS = {
    "full": {},
    "freeze": {},
    "lora": {},
    "oft": {},
    "qlora": {"quantization_bit": 4},
    "qoft": {"quantization_bit": 4},
}


def theirs(**settings: object) -> dict[str, object]:
    return {"model_name_or_path": NANO, "stage": "sft", "finetuning_type": "lora", "cutoff_len": 128, **settings}


def ours(**settings: object) -> list[str]:
    """As `load_config` reads it; without their data, which is not here."""
    overrides = translate(theirs(**settings))
    return shlex.split(command(overrides).replace("\\\n", " "))[3:]


@pytest.fixture
def registry(tmp_path: Path) -> str:
    rows = [{"instruction": "1+1=", "input": "", "output": "2"}] * 4
    (tmp_path / "sums.json").write_text(json.dumps(rows))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": "sums.json"}}))
    return str(tmp_path)


@pytest.fixture
def judge(tmp_path: Path) -> str:
    """A reward model, as far as its settings tell."""
    shutil.copytree(NANO, tmp_path / "judge")
    settings = json.loads((tmp_path / "judge/config.json").read_text())
    as_judge = {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (tmp_path / "judge/config.json").write_text(json.dumps(settings | as_judge))
    return str(tmp_path / "judge")


@pytest.mark.parametrize("key", PROMISED)
def test_every_key_of_their_example_files_is_known(key: str) -> None:
    assert key in RULES


@pytest.mark.parametrize("stage", [*STAGES, "orpo", "simpo"])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_every_stage_and_tuning_is_a_run_here(stage: str, tuning: str, registry: str, judge: str) -> None:
    of_stage = {"stage": stage} if stage in STAGES else {"stage": "dpo", "pref_loss": stage}
    of_ppo = {"reward_model": judge} if stage == "ppo" else {}
    method = {"finetuning_type": tuning.removeprefix("q"), **TUNINGS[tuning]}
    config = load_config(ours(**of_stage, **of_ppo, **method, dataset="sums", dataset_dir=registry))

    assert type(config.algo).__name__.lower() == stage
    assert config.tuning.method is TuningMethod(tuning.removeprefix("q"))
    assert (config.tuning.quantization is Quantization.NF4) == tuning.startswith("q")


def test_values_that_several_keys_decide() -> None:
    simpo = load_config(ours(stage="dpo", pref_loss="simpo", pref_beta=2.0, simpo_gamma=1.0) + DATA)
    assert isinstance(simpo.algo, SimPO) and (simpo.algo.beta, simpo.algo.gamma_beta_ratio) == (2.0, 0.5)
    orpo = load_config(ours(stage="dpo", pref_loss="orpo", pref_beta=0.2) + DATA)
    assert isinstance(orpo.algo, ORPO) and orpo.algo.odds_coef == 0.2
    ipo = load_config(ours(stage="dpo", pref_loss="ipo", pref_beta=0.3) + DATA)
    assert isinstance(ipo.algo, DPO) and (ipo.algo.loss_type, ipo.algo.beta) == (LossType.IPO, 0.3)


DATA = ["data=arithmetic"]


def test_their_numbers_arrive() -> None:
    settings = {
        "lora_rank": 16, "lora_alpha": 64, "use_dora": True, "pissa_init": False, "cutoff_len": 256, "bf16": True,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "learning_rate": 2e-5, "seed": 7,
        "num_train_epochs": 3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "output_dir": "saves/one",
        "deepspeed": "examples/deepspeed/ds_z2_config.json", "neat_packing": True, "weight_decay": 0.1,
    }  # fmt: skip
    config = load_config(ours(**settings) + DATA)
    train, tuning = config.train, config.tuning
    assert (tuning.rank, tuning.alpha, tuning.dora, tuning.init) == (16, 64, True, LoraInit.ZERO)
    assert (config.model.context_length, config.rendering.overlong) == (256, Overlong.TRUNCATE)
    assert config.model.precision is Precision.BFLOAT16
    assert (train.examples_per_step, train.learning_rate, train.schedule) == (16, 2e-5, Schedule.COSINE)
    assert (train.warmup_share, train.zero_stage, train.packing, train.weight_decay) == (0.1, 2, True, 0.1)
    assert (config.run.epochs, config.run.seed, str(config.run_folder)) == (3, 7, "saves/one")


def test_steps_win_over_epochs_as_they_do_there() -> None:
    config = load_config(ours(num_train_epochs=3, max_steps=20) + DATA)
    assert (config.run.steps, config.run.epochs) == (20, 0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lora_rnak": 8}, "lora_rnak: not translated; did you mean lora_rank?"),
        ({"use_galore": True}, "use_galore: not translated"),
        ({"finetuning_type": "full", "quantization_bit": 4}, "finetuning_type: full is none of"),
        ({"quantization_bit": 3}, "quantization_bit: 3 is neither 4 nor 8"),
        ({"stage": "dpo", "pref_loss": "kto_pair"}, "stage: kto_pair is none of sigmoid"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type: polynomial is none of"),
        ({"deepspeed": "ds_z3_offload_config.json"}, "deepspeed: no ZeRO stage can be told"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(settings: dict[str, object], told: str) -> None:
    with pytest.raises(NotTranslated, match=re.escape(told)):
        translate(theirs(**settings))


def test_the_page_shows_the_very_table() -> None:
    assert table() in (HERE / "README.md").read_text()


def test_the_command_of_the_page_prints_a_command_that_composes(registry: str, tmp_path: Path) -> None:
    settings = yaml.safe_load((HERE / "sft.yaml").read_text())
    own = {**settings, "dataset": "sums", "dataset_dir": registry, "model_name_or_path": NANO}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    done = subprocess.run(
        [sys.executable, HERE / "translate.py", tmp_path / "own.yaml"], capture_output=True, text=True, check=True
    )
    printed = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    config = load_config(shlex.split("\n".join(printed).replace("\\\n", " "))[3:])
    assert config.algo.online is False and config.data.names == ("sums",)
