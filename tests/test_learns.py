"""The default run learns, and only from its rewards. What it leaves behind is what the README promises."""

from __future__ import annotations

import re

import pytest
import torch
from runs import Finished, run_main
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from engine.config import load_config
from engine.tasks import prepare_online
from workers.config import ClusterConfig, ModelConfig, RolloutConfig
from workers.records import GroupRequest, Sampling
from workers.rollout_worker import RolloutWorker


@pytest.fixture(scope="session")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`python -m engine.main`, with nothing but a folder of its own."""
    run = run_main(folder=tmp_path_factory.mktemp("default"), name="default")
    assert run.exit_code == 0, run.output
    return run


def test_the_default_run_learns_to_add(default_run: Finished) -> None:
    summary = default_run.summary
    assert 0.1 <= summary["held_out_before"] <= 0.5
    assert summary["held_out_after"] >= 0.85
    assert summary["held_out_greedy_after"] >= 0.95


def test_engine_and_trainer_agreed_on_every_token(default_run: Finished) -> None:
    # The largest of some ten thousand rounding errors: seen from 5e-5 to 2e-4, by processor.
    assert default_run.summary["logprob_gap_max"] < 1e-3
    assert all(row["logprob_gap_mean"] < 2e-6 for row in default_run.steps)
    assert all(row["logprob_gap_k3"] < 1e-6 for row in default_run.steps)


def test_the_policy_starts_at_its_reference_and_leaves_it(default_run: Finished) -> None:
    first, *_, last = default_run.steps
    assert abs(first["kl"]) < 1e-6
    assert last["kl"] > 1e-3


def test_weights_change_every_step_and_every_version_arrived(default_run: Finished) -> None:
    checksums = [row["weights_checksum"] for row in default_run.steps]
    assert len(set(checksums)) == len(checksums) == default_run.summary["steps"]


def test_the_run_leaves_its_folder(default_run: Finished) -> None:
    folder = default_run.folder
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "tensorboard", "checkpoints", "export", "logs"):
        assert (folder / name).exists(), name
    assert {"steps", "wall_s", "tokens_per_s", "export"} <= default_run.summary.keys()
    rollouts = load_file(sorted((folder / "rollouts").glob("*.safetensors"))[-1])
    assert len(rollouts["offset"]) == len(rollouts["draw"]) + 1
    assert set(rollouts["version"]) == {default_run.summary["steps"] - 1}


def test_the_person_is_told_what_happens_and_nothing_else(default_run: Finished) -> None:
    lines = default_run.output.splitlines()
    assert "starting Ray" in default_run.output
    # Beside the log, each with the time before it: a step's best and worst responses, in blocks.
    own = re.compile(r"step \d+, (best|worst) response: |  (user|response|answer|parts)\s+│ ")
    others = [line for line in lines if " s  " not in line]
    assert all(own.match(line) for line in others), others
    assert sum(line.startswith("step ") for line in others) == 2 * 5


def test_the_export_answers_in_vllm_and_in_transformers_as_it_did_in_the_run(default_run: Finished) -> None:
    from workers.vllm_engine import VLLMEngine  # vLLM takes seconds to import

    export = default_run.summary["export"]
    model = AutoModelForCausalLM.from_pretrained(export)
    prompts = prepare_online(load_config([])).held_out[:200]
    greedy = Sampling(temperature=0.0, max_tokens=8)
    rollout = RolloutConfig(kv_cache_gib=0.0625, max_running=64)
    worker = RolloutWorker(
        lambda: VLLMEngine(ModelConfig(path=export), rollout, ClusterConfig(), seed=0), max_running=rollout.max_running
    )
    asked = [
        worker.generate(
            GroupRequest(prompt=prompt, draw=draw, num_samples=1, seed=0, sampling=greedy, with_greedy=False)
        )
        for draw, prompt in enumerate(prompts)
    ]
    answers = [future.result().rollouts[0] for future in asked]
    worker.close()

    right = [answer.text == prompt.answer for answer, prompt in zip(answers, prompts, strict=True)]
    assert sum(right) / len(right) == default_run.summary["held_out_greedy_after"]
    for answer in answers[:40]:
        tokens = torch.tensor([[*answer.prompt.token_ids, *answer.token_ids.tolist()]])
        logits = model(tokens).logits[0, len(answer.prompt.token_ids) - 1 : -1]
        assert logits.argmax(dim=-1).tolist() == answer.token_ids.tolist()
        chosen = logits.log_softmax(dim=-1).gather(1, tokens[0, len(answer.prompt.token_ids) :, None]).squeeze(1)
        assert (chosen - torch.from_numpy(answer.logprobs)).abs().max() < 1e-4


def test_the_memory_of_every_roles_verbs_and_the_start_are_among_the_metrics(default_run: Finished) -> None:
    verbs = {
        "policy": ("look", "credit", "update", "publish"),
        "reference": ("reference_outputs",),
        "rollout": ("generate", "load_weights"),
        "reward": ("score",),
    }
    first = default_run.steps[0]
    for role, names in verbs.items():
        for name in names:
            assert 0.01 < first[f"memory/{role}/{name}_gib"] < 8.0
        assert 0.0 < first[f"time/start/{role}_s"] < first["time/start_s"]
