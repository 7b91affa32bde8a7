"""Every mistake in a run's settings is told in words a person can act on: what, where it was set, what to do."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from engine import compose
from engine.algorithms.kl import KlEstimator
from engine.algorithms.sft import SFT
from engine.config import CONF, REPOSITORY, Config, ConfigError, load_config

BLANK = ("model=nano",)


def load(*overrides: str) -> Config:
    return load_config([*BLANK, *overrides])


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return str(caught.value)


# ----------------------------------------------------------------------------- mistakes in what was typed


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("train.learnin_rate=1e-4", "train.learning_rate"),
        ("learning_rate=1e-4", "train.learning_rate"),
        ("trian.learning_rate=1e-4", "train.learning_rate"),
        ("rollout.learning_rate=1e-4", "train.learning_rate"),
        ("algo.clip_hihg=0.3", "algo.clip_high"),
        ("algo.shaping.overlong_shar=0.2", "algo.shaping.overlong_share"),
        ("algo.overlong_share=0.2", "algo.shaping.overlong_share"),
        ("algo.corection.cap=3", "algo.correction.cap"),
        ("critic.learnin_rate=1e-4", "critic.learning_rate"),
        ("data.lagrest=9", "data.largest"),
        ("rollouts.engine=hf", "rollout.engine"),
    ],
)
def test_a_misspelt_key_is_told_with_the_nearest_one(typed: str, nearest: str) -> None:
    message = refusal(typed)

    assert message.startswith(f"{typed.split('=')[0]} is not a key.")
    assert f"set by: {typed} on the command line" in message
    assert re.search(rf"Did you mean {nearest}( or critic\.\w+)?\?", message)


@pytest.mark.parametrize("group", ["algo", "model", "data", "experiment"])
def test_a_misspelt_option_is_told_with_those_there_are(group: str) -> None:
    options = compose.options_in(CONF)[group]
    message = refusal(f"{group}={options[0]}x")

    assert f"{group} has no option '{options[0]}x'" in message
    assert f"Did you mean {group}={options[0]}?" in message
    assert all(option in message for option in options)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("train.ranks=two", "train.ranks takes a whole number, and was given 'two'."),
        ("train.ranks=1.5", "train.ranks takes a whole number, and was given 1.5."),
        ("train.ranks=null", "train.ranks takes a whole number, and was given None."),
        ("train.learning_rate=fast", "train.learning_rate takes a number, and was given 'fast'."),
        ("run.tensorboard=perhaps", "run.tensorboard takes true or false, and was given 'perhaps'."),
        ("train.betas=[0.9,x]", "train.betas takes a list, each a number, and was given [0.9, 'x']."),
        ("algo.clip_low=low", "algo.clip_low takes a number, and was given 'low'."),
        ("algo.correction.cap=high", "algo.correction.cap takes a number, and was given 'high'."),
        ("algo.shaping.clip=[0,1,2]", "algo.shaping.clip takes 2 values, and was given 3"),
        ("algo.shaping=short", "algo.shaping is a section, and was given the value short."),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_the_right_one(typed: str, words: str) -> None:
    message = refusal(typed)

    assert message.startswith(words)
    assert f"set by: {typed} on the command line" in message


def test_an_unknown_enum_value_is_told_with_those_there_are() -> None:
    message = refusal("model.precision=bfloat")

    assert "model.precision cannot be 'bfloat'." in message
    assert "Did you mean bfloat16? It is one of: float32, bfloat16." in message
    assert all(member.value in refusal("algo.kl_estimator=k9") for member in KlEstimator)


@pytest.mark.parametrize(
    "typed", ["foo", "run.name=a=b", "run.name='a", "--steps=3", "train.betas[0]=1", "=3", "algo/x=3", "algo@x=grpo"]
)
def test_what_is_no_override_is_told_with_what_one_is(typed: str) -> None:
    message = refusal(typed)

    assert f"`{typed}` is not an override" in message
    assert "key=value" in message


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("train.learning_rate=1e-4,1e-5", "start several runs"),
        ("~train.learning_rate", "Set it to another value"),
        ("hydra.run.dir=x", "run.folder"),
        ("train=5", "Set its keys: train.ranks"),
        ("algo=null", "There are: cispo, dapo, dpo, dr_grpo, grpo"),
        ("train.ranks=${nowhere.at_all}", "Give the value itself"),
    ],
)
def test_what_hydra_could_do_and_a_run_cannot_is_refused(typed: str, advice: str) -> None:
    assert advice in refusal(typed)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("algo._target_=null", "algo does not say which class it is: it has no _target_."),
        ("data._target_=GRPO", "is not a dataclass"),
        ("algo._target_=engine.algorithms.grop.GRPO", "No module named 'engine.algorithms.grop'"),
        ("algo._target_=engine.algorithms.grpo.GPRO", "Did you mean engine.algorithms.grpo.GRPO?"),
        ("algo._target_=engine.algorithms.base.abstractmethod", "is not a dataclass"),
        ("algo._target_=engine.algorithms.base.Algorithm", "is abstract: advantage, needs, policy_loss"),
        ("algo._target_=engine.data.arithmetic.Sums", "which is no algorithm"),
    ],
)
def test_an_open_section_must_name_its_class(typed: str, words: str) -> None:
    message = refusal(typed)

    assert words in message
    assert typed in message


def test_a_required_setting_without_a_value_is_asked_for() -> None:
    assert "data.path has no value.\n  Type data.path=<a text, or a list of texts>." in refusal("data=files")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("algo.clip_low=3", "algo.clip_low is 3.0: the ratio's floor is 1 - algo.clip_low; choose from 0 to 1."),
        ("algo.kl_target=0.1", "set algo.kl_in=reward and algo.kl_coef above 0, or algo.kl_target to 0."),
        ("algo.std_ddof=2", "algo.std_ddof is 2: choose 0 or 1."),
        ("algo.shaping.clip=[1,0]", "algo.shaping.clip is (1.0, 0.0): the lower bound comes first."),
        ("algo.shaping.overlong_share=20", "algo.shaping.overlong_share is 20.0: choose from 0 to 1."),
        ("algo.correction.cap=0.5", "algo.correction.cap is 0.5, with algo.correction.floor=0.0: without"),
        ("algo.dynamic_sampling.draw_ahead=0.5", "algo.dynamic_sampling.draw_ahead is 0.5: "),
        ("algo.reference_refresh.share=2", "algo.reference_refresh.share is 2.0: the policy's part in the new"),
    ],
)
def test_a_setting_that_an_algorithm_refuses_is_told_whole_with_where_it_was_set(typed: str, words: str) -> None:
    problem, origin, advice = refusal(typed).splitlines()

    assert words in problem
    assert problem.startswith(typed.partition("=")[0])
    assert origin == f"  set by: {typed} on the command line"
    assert "--help" in advice


def test_a_setting_of_a_preset_s_file_that_another_one_forbids_is_told_with_both_places() -> None:
    """grpo_easyr1 charges the reward with K1; as a loss that holds the policy nowhere."""
    message = refusal("algo=grpo_easyr1", "algo.kl_in=loss")

    assert message.startswith("algo.kl_estimator is K1: as a loss its gradient is zero in expectation")
    assert "algo.kl_estimator in conf/algo/grpo_easyr1.yaml" in message
    assert "algo.kl_in=loss on the command line" in message


def test_a_mistake_in_a_file_is_told_with_the_file(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    (conf / "model").mkdir(parents=True)
    (conf / "config.yaml").write_text("defaults:\n  - _self_\n  - model: big\n")
    (conf / "model/big.yaml").write_text("# @package _global_\ntrain:\n  lr: 1\n")
    with pytest.raises(ConfigError, match=r"train\.lr is not a key\.\n  set by: train\.lr in conf/model/big\.yaml"):
        compose.compose([], _Closed, conf=conf, open_sections=())

    (conf / "model/big.yaml").write_text("ranks: many\n")
    with pytest.raises(ConfigError, match=r"given 'many'\.\n  set by: model\.ranks in conf/model/big\.yaml"):
        compose.compose([], _Closed, conf=conf, open_sections=())

    (conf / "model/big.yaml").write_text("ranks: [1\n")
    with pytest.raises(ConfigError, match="do not compose"):
        compose.compose([], _Closed, conf=conf, open_sections=())


@dataclasses.dataclass
class _Sizes:
    ranks: int = 1


@dataclasses.dataclass
class _Closed:
    model: _Sizes = dataclasses.field(default_factory=_Sizes)
    train: _Sizes = dataclasses.field(default_factory=_Sizes)


# ----------------------------------------------------------------------------- settings that cannot be together


@pytest.mark.parametrize(
    ("typed", "words", "advice"),
    [
        (["rollout.top_p=0.9"], "another distribution", "rollout.top_p=1"),
        (["rollout.top_k=50"], "another distribution", "rollout.top_k=0"),
        (["rollout.temperature=0"], "rollout.temperature is 0.0", "above 0"),
        (["rollout.max_staleness=-1"], "rollout.max_staleness is -1", "0 or more"),
        (["rollout.max_staleness=1", "algo.correction.weight=none"], "weight is none", "weight=token_tis"),
        (["rollout.max_staleness=1", "rollout.oversampling=1.5"], "nothing is cut off", "rollout.max_staleness=0"),
        (["rollout.oversampling=0.5"], "rollout.oversampling is 0.5", "such as 1.25"),
        (["train.updates_per_step=3"], "(32) cannot be split", "prompts_per_step=30"),
        (["algo=dapo", "train.updates_per_step=3"], "(32) cannot be split", "prompts_per_step=30"),
        (["rollout.responses_per_prompt=1"], "GRPO compares", "responses_per_prompt=8"),
        (["rollout.responses_per_prompt=1", "algo=dapo"], "DAPO compares", "responses_per_prompt=8"),
        (["train.epochs_per_step=0"], "train.epochs_per_step is 0", "above 0"),
        (["critic.learning_rate=nan"], "critic.learning_rate is nan", "0 or more"),
        (["algo=ppo", "critic.path=no/such/folder"], "critic.path is no/such/folder", "existing folder"),
        (["algo=ppo", "critic.path=examples"], "critic.path is examples, which holds no config.json", "Hugging Face"),
        (["algo=ppo", "critic.path=examples/nano/blank"], "examples/nano/blank holds no weights", "a trained model."),
        (
            ["algo.reference_refresh.every_steps=5", "algo.kl_coef=0"],
            "algo.reference_refresh.every_steps is 5, and GRPO has no reference",
            "algo.kl_coef above 0",
        ),
        (["train.zero_stage=4"], "train.zero_stage is 4", "0, 1, 2 or 3"),
        (["model.precision=bfloat16", "train.zero_stage=0"], "no float32 weights", "train.zero_stage=1"),
        (["reward.function="], "reward.function is empty", "reward.function=path"),
        (["rollout.max_response_tokens=512"], "leaves no room", "model.context_length"),
        (["model.path=no/such/folder"], "model.path is no/such/folder", "existing folder"),
        (["model.path=gpt"], "not the form of a hub id", "existing folder"),
        (["model.path=examples/nano/blank"], "holds no weights", "model.weights=random"),
        (["model.weights=random"], "a rollout engine needs a trained model", "algo=sft"),
        (
            [
                "cluster.gpus_per_trainer=0.3",
                "cluster.gpus_per_engine=0.3",
                "cluster.device=cuda",
                "train.zero_stage=0",
            ],
            "share GPUs",
            "train.zero_stage=1",
        ),
        (["model.path=examples"], "holds no config.json", "Hugging Face"),
        (["model.context_length=513"], "examples/nano/policy was made for at most 512 tokens", "512 or less"),
        (["data=arithmetic_demos"], "GRPO learns from questions", "another algo or data"),
        (["run.name=a/b"], "run.name is a/b", "run.folder"),
        (["run.steps=0"], "run.steps is 0", "above 0"),
        (["run.seed=-1"], "run.seed is -1", "0 or more"),
        (["train.learning_rate=nan"], "train.learning_rate is nan", "0 or more"),
        (["train.learning_rate=inf"], "train.learning_rate is inf", "0 or more"),
        (["reward.max_failure_fraction=1.5"], "a share is at most 1", "0 to 1"),
        (["train.betas=[0.9,1.0]"], "train.betas is (0.9, 1.0)", "[0, 1)"),
    ],
)
def test_an_impossible_run_is_refused_with_what_to_set(typed: list[str], words: str, advice: str) -> None:
    problem, *rest = refusal(*typed).splitlines()

    assert words in problem
    assert advice in rest[-1]
    # Which algorithm is chosen is no mistake.
    assert all(override in rest[0] for override in typed if not override.endswith("=") and "algo=" not in override)


def test_who_takes_turns_on_a_gpu_cannot_run_ahead() -> None:
    shared = ["cluster.device=cuda", "cluster.gpus_per_trainer=0.5", "cluster.gpus_per_engine=0.5"]
    problem, origin, advice = refusal("rollout.max_staleness=1", "train.zero_stage=1", *shared).splitlines()

    assert "they take turns" in problem and "whole GPUs" in advice
    assert all(override in origin for override in ["rollout.max_staleness=1", *shared])


def test_questions_alone_cannot_be_imitated() -> None:
    problem, origin, advice = refusal("algo=sft", "data=reasoning_gym", "data.task=countdown").splitlines()

    assert problem == "SFT learns from conversations, and ReasoningGymData has none."
    assert origin == "  set by: algo=sft on the command line; data=reasoning_gym on the command line"
    assert "another algo or data" in advice


def test_questions_are_not_streamed() -> None:
    typed = ("data=files", "data.path=a.jsonl", "data.streaming=true")
    problem, origin, advice = refusal(*typed, "reward.function=rewards.number:exact").splitlines()

    assert problem == "data.streaming is true, and of GRPO its questions are drawn from all of them."
    assert origin.startswith("  set by: data.streaming=true on the command line")
    assert "data.streaming=false" in advice


def test_one_text_is_a_list_of_one() -> None:
    assert load("algo=sft", "data=files", "data.path=a.jsonl").data.path == ("a.jsonl",)
    assert load("algo=sft", "data=files", "data.path=[a.jsonl,b.csv]").data.path == ("a.jsonl", "b.csv")


def test_one_response_to_a_prompt_is_enough_where_nothing_is_compared_with_siblings() -> None:
    for algorithm in ("ppo", "reinforce_pp", "remax"):
        assert load(f"algo={algorithm}", "rollout.responses_per_prompt=1").rollout.responses_per_prompt == 1


def test_a_critic_s_folder_matters_only_to_an_algorithm_with_a_critic() -> None:
    assert load("critic.path=no/such/folder").critic.path == "no/such/folder"


def test_a_critic_made_for_shorter_texts_is_refused(tmp_path: Path) -> None:
    settings = json.loads((REPOSITORY / "examples/nano/policy/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 256}))
    (tmp_path / "model.safetensors").write_text("")
    problem, origin, advice = refusal("algo=ppo", f"critic.path={tmp_path}").splitlines()

    assert problem == f"model.context_length is 512, and {tmp_path} was made for at most 256 tokens."
    assert "critic.path=" in origin and "256 or less" in advice


def test_rollout_settings_do_not_matter_offline() -> None:
    assert load("experiment=nano_base", "rollout.temperature=0", "train.updates_per_step=3").algo == SFT()


def test_a_default_that_clashes_is_told_with_its_file() -> None:
    assert "rollout.prompts_per_step in conf/model/nano.yaml" in refusal("train.updates_per_step=5")
