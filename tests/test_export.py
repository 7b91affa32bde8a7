"""What a run leaves behind loads with plain transformers, PEFT and vLLM, and says what the trained model says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from runs import REPOSITORY
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig

from engine.export import run
from workers.config import ClusterConfig, EngineKind, ModelConfig, RolloutConfig
from workers.exporting import ExportError, largest_difference
from workers.model import padding_of
from workers.records import Sampling
from workers.rollout_actor import engine_class
from workers.rollout_worker import CompletionRequest

NANO = REPOSITORY / "examples/nano/policy"
SMALL = ["data.largest=9", "data.held_out=8", "train.examples_per_step=8", "train.learning_rate=1e-2", "run.steps=2"]


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of SFT with an adapter, a checkpoint after each."""
    folder = tmp_path_factory.mktemp("runs")
    settings = [*SMALL, f"run.folder={folder}", "run.name=lora", "run.save_every_steps=1", "train.warmup_updates=0"]
    command = [sys.executable, "-m", "engine.main", "algo=sft", "tuning=lora", *settings]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "lora"


@pytest.fixture(scope="module")
def merged(lora_run: Path) -> Path:
    assert run([str(lora_run), "--merge"]) == 0
    return lora_run / "export_merged"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(2, 42)[None]).logits


def test_an_adapter_and_what_it_was_merged_into_say_the_same_to_others(lora_run: Path, merged: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(NANO)
    of_base = logits(base)
    of_adapter = logits(PeftModel.from_pretrained(base, lora_run / "export"))
    of_merged = logits(AutoModelForCausalLM.from_pretrained(merged))

    assert torch.allclose(of_adapter, of_merged, atol=1e-4)
    assert not torch.allclose(of_base, of_merged, atol=1e-2), "two steps did change it"
    assert AutoTokenizer.from_pretrained(merged).chat_template == AutoTokenizer.from_pretrained(NANO).chat_template


def test_vllm_loads_what_was_merged_and_samples_as_transformers_would(merged: Path) -> None:
    rollout = RolloutConfig(max_response_tokens=8, kv_cache_gib=0.1)
    engine = engine_class(EngineKind.VLLM)(ModelConfig(path=str(merged)), rollout, ClusterConfig(), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    asked = [{"role": "user", "content": "3+4="}]
    prompt = tuple(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False))
    engine.add(CompletionRequest(id="one", token_ids=prompt, sampling=Sampling(temperature=0.0, max_tokens=4), seed=0))
    finished = []
    while engine.is_busy():
        finished += engine.step()
    ((_, completion),) = finished

    said = AutoModelForCausalLM.from_pretrained(merged)
    tokens = torch.tensor([*prompt, *completion.token_ids.tolist()])
    with torch.inference_mode():
        logprobs = said(input_ids=tokens[None]).logits[0].log_softmax(-1)
    predicted = logprobs[len(prompt) - 1 : -1]
    assert predicted.argmax(-1).tolist() == completion.token_ids.tolist()
    assert np.allclose(predicted.max(-1).values.numpy(), completion.logprobs, atol=1e-4)


def test_any_checkpoint_that_was_kept_is_exported(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for step in (1, 2):
        assert run([str(lora_run), "--step", str(step), "--to", str(tmp_path / str(step))]) == 0
        assert "loaded again, it says the same" in capsys.readouterr().out
    first, second = ((tmp_path / step / "adapter_model.safetensors").read_bytes() for step in ("1", "2"))
    assert first != second == (lora_run / "export" / "adapter_model.safetensors").read_bytes()

    assert run([str(lora_run), "--step", "7"]) == 2
    assert "no checkpoint of step 7" in capsys.readouterr().err


def test_a_folder_that_says_something_else_is_not_called_an_export(merged: Path) -> None:
    from engine.saved_config import saved_config

    team = saved_config(merged.parent).team()
    trained = AutoModelForCausalLM.from_pretrained(merged)
    trained.get_parameter("model.layers.0.mlp.up_proj.weight").data[0] += 0.1
    with pytest.raises(ExportError, match="says something else than the trained model"):
        largest_difference(trained, merged, team.model, team.tuning, as_adapter=False, judges=False)


def test_what_does_not_say_the_same_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def differs(*_: object, **__: object) -> None:
        raise ExportError("it says something else")

    monkeypatch.setattr("engine.export.export_run", differs)
    assert run(["runs/one"]) == 1
    assert capsys.readouterr().err == "heliostat: it says something else\n"


@pytest.mark.parametrize(
    ("padding", "begin", "end", "chosen"),
    [(0, 5, 1, 0), (2, 1, 2, 1), (2, None, 2, 0), (0, 0, [0, 1], 2), (None, None, 0, 1)],
)
def test_what_pads_never_ends_a_text(padding: int | None, begin: int | None, end: int | list[int], chosen: int) -> None:
    settings = PretrainedConfig(pad_token_id=padding, bos_token_id=begin, eos_token_id=end)
    assert padding_of(settings) == chosen


def test_a_reward_model_reads_at_the_same_place_in_transformers_however_it_is_padded(tmp_path: Path) -> None:
    """Also where the base pads with its end token."""
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(NANO)
    model.config.pad_token_id = model.config.eos_token_id
    model.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    settings = [*SMALL, f"run.folder={tmp_path}", "run.name=rm", f"model.path={base}", "model.context_length=64"]
    command = [sys.executable, "-m", "engine.main", "algo=rm", "data=arithmetic", *settings]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm/export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm/export")
    texts = ["<|user|>1+1=<|end|><|assistant|>2<|end|>", "<|user|>1+1=<|end|><|assistant|>123<|end|>"]
    with torch.inference_mode():
        together = judge(**tokenizer(texts, padding=True, return_tensors="pt", padding_side="right")).logits[:, 0]
        alone = torch.cat([judge(**tokenizer(text, return_tensors="pt")).logits[:, 0] for text in texts])
        hidden = judge.model(**tokenizer(texts[0], return_tensors="pt")).last_hidden_state[0, -1]
        at_the_end = judge.score(hidden)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(at_the_end, alone[:1], atol=1e-5), "at the end token itself"
    assert json.loads((tmp_path / "rm/export/config.json").read_text())["architectures"] == [
        "Qwen2ForSequenceClassification"
    ]
