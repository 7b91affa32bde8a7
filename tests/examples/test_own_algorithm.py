"""An algorithm of one's own is one file and one YAML: it composes, computes what its paper says, and learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import run_main

from engine.algorithms.base import Outcomes
from engine.compose import compose
from engine.config import CONF, OPEN_SECTIONS, Config, ConfigError, load_config, load_config_for_cluster
from engine.job_package import pack
from examples.own_algorithm.gpg import GPG
from workers.records import Batch, Experience, ModelOutputs, TokenLogprobs, Totals

OWN = "algo=examples/own_algorithm/gpg.yaml"


def outcomes(scores: list[list[float]]) -> Outcomes:
    """One list a group."""
    groups = [number for number, group in enumerate(scores) for _ in group]
    flat = [score for group in scores for score in group]
    return Outcomes(
        score_B=np.array(flat),
        greedy_B=np.full(len(flat), np.nan),
        length_B=np.full(len(flat), 2),
        group_B=np.array(groups),
    )


# ----------------------------------------------------------------------------- what it computes


def test_groups_that_say_nothing_are_made_up_for() -> None:
    """Two of three groups have a gradient: alpha is 3/2."""
    found = GPG().advantage(outcomes([[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]))
    expected = [1.125, -0.375, -0.375, -0.375, 0, 0, 0, 0, 0.75, 0.75, -0.75, -0.75]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_without_rescaling_and_without_any_gradient() -> None:
    assert GPG(rescale=False).advantage(outcomes([[1, 0], [1, 1]])).tolist() == [0.5, -0.5, 0, 0]
    assert GPG().advantage(outcomes([[1, 1], [0, 0]])).tolist() == [0, 0, 0, 0]


def test_the_loss_is_the_mean_over_all_tokens_of_minus_advantage_times_log_prob() -> None:
    """By hand: (1.5 * 1.0 + 1.5 * 2.0 - 0.5 * 0.3) / 3 tokens = 1.45; d loss / d log pi = -A / 3, 0 where masked."""
    mask_BT = torch.tensor([[True, True], [True, False]])
    logprobs_BT = torch.tensor([[-1.0, -2.0], [-0.3, torch.nan]], dtype=torch.float64, requires_grad=True)
    batch = Batch(
        context=(torch.zeros(4, dtype=torch.long),) * 2,
        prompt_lengths=(2, 2),
        prompts=(0, 1),
        token_ids_BT=torch.zeros(2, 2, dtype=torch.long),
        mask_BT=mask_BT,
        rollout_logprobs_BT=logprobs_BT.detach(),
        version_BT=torch.zeros(2, 2, dtype=torch.long),
        reward_B=torch.zeros(2, dtype=torch.float64),
        prompt_tokens_B=torch.tensor([3, 3]),
    )
    algorithm, outputs = GPG(), ModelOutputs(tensors={"old_logprobs_BT": logprobs_BT.detach()})
    state = algorithm.initial_state()
    credit = algorithm.token_credit(batch, outputs, torch.tensor([1.5, -0.5], dtype=torch.float64), state)
    policy = TokenLogprobs(logprobs_BT=logprobs_BT, entropy_BT=torch.zeros(2, 2, dtype=torch.float64))
    totals = Totals(tokens=3, sequences=2, prompts=1, horizon=8)
    experience = Experience(batch=batch, outputs=outputs, credit=credit)

    loss = algorithm.policy_loss(policy, experience, totals, state)
    loss.value.backward()

    assert loss.value.item() == pytest.approx(1.45, abs=1e-12)
    np.testing.assert_allclose(logprobs_BT.grad, [[-0.5, -0.5], [1 / 6, 0.0]], rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------- how it is chosen


def test_a_file_is_chosen_as_an_option_is() -> None:
    config = load_config([OWN, "algo.rescale=false"])
    assert config.algo == GPG(rescale=False)
    assert config.run.name == "gpg-nano-arithmetic"


def test_a_file_may_set_other_sections_and_be_called_as_one_of_ours(tmp_path: Path) -> None:
    own = tmp_path / "a folder" / "grpo.yaml"
    own.parent.mkdir()
    own.write_text(
        "# @package _global_\ndefaults: [{override /model: qwen2.5-0.5b}]\n"
        "algo: {_target_: engine.algorithms.grpo.GRPO, clip_high: 0.25}\ntrain: {updates_per_step: 2}\n"
    )
    composed = compose([f"algo='{own}'"], Config, conf=CONF, open_sections=OPEN_SECTIONS)
    assert composed.config.algo.clip_high == 0.25
    assert composed.config.train.updates_per_step == 2
    assert (composed.choices["algo"], composed.choices["model"]) == ("grpo", "qwen2.5-0.5b")
    assert composed.sources.file_of("algo.clip_high") == str(own)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no option", "there is no such file in", "Did you mean algo=", "mine.yaml?", "dr_grpo"]),
        ("a: [", ["is not YAML", "Mend the file"]),
        ("", ["holds no keys", "_target_"]),
        ("_target_: examples.own_algorithm.gpg.GPT", ["is not a dataclass", "Did you mean examples", "gpg.GPG"]),
        ("{_target_: examples.own_algorithm.gpg.GPG, rescal: 1}", ["algo.rescal is not a key", "algo.rescale"]),
    ],
)
def test_a_file_that_cannot_be_an_option_is_told(content: str | None, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("" if content is None else content)
    typed = f"algo={tmp_path}/{'mime' if content is None else 'mine'}.yaml"
    with pytest.raises(ConfigError) as refused:
        load_config([typed])
    assert all(word in str(refused.value) for word in [*words, str(tmp_path)]), str(refused.value)


def test_a_job_takes_both_files_along() -> None:
    typed = [OWN, "run.folder=/shared"]
    package = pack(typed, load_config_for_cluster([*typed, "cluster.address=http://head:8265"]))
    assert package.overrides[-1] == "algo=inputs/algo/gpg.yaml"
    assert {"inputs/algo/gpg.yaml", "examples/own_algorithm/gpg.py"} <= {file.place for file in package.files}


# ----------------------------------------------------------------------------- that it runs


def test_it_learns_from_real_rollouts(cluster: str, tmp_path: Path) -> None:
    small = ("rollout.engine=hf", "rollout.prompts_per_step=4", "evaluation.prompts=0", "run.steps=2")
    run = run_main(OWN, *small, f"cluster.address={cluster}", folder=tmp_path, name="gpg")
    assert run.exit_code == 0, run.output
    assert len({step["weights_checksum"] for step in run.steps}) == 2
    assert all(step["gradient_norm"] > 0 for step in run.steps)
