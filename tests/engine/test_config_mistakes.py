"""Every mistake in a run's settings is told in words a person can act on: what, where it was set, what to do."""

import dataclasses
from pathlib import Path

import pytest

from engine import compose
from engine.algorithms.kl import KlEstimator
from engine.algorithms.sft import SFT
from engine.config import CONF, Config, ConfigError, load_config

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
        ("data.lagrest=9", "data.largest"),
        ("rollouts.engine=hf", "rollout.engine"),
    ],
)
def test_a_misspelt_key_is_told_with_the_nearest_one(typed: str, nearest: str) -> None:
    message = refusal(typed)

    assert message.startswith(f"{typed.split('=')[0]} is not a key.")
    assert f"set by: {typed} on the command line" in message
    assert f"Did you mean {nearest}?" in message


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
        ("algo=null", "There are: grpo"),
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
    assert "data.path has no value.\n  Type data.path=<a text>." in refusal("data=jsonl")


def test_a_setting_that_an_algorithm_refuses_is_told_with_where_it_was_set() -> None:
    message = refusal("algo.clip_low=3")

    assert message.startswith("algo: clip_low is 3.0")
    assert "set by: algo.clip_low=3 on the command line" in message


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
        (["rollout.max_staleness=1"], "rollout.max_staleness is 1", "rollout.max_staleness=0"),
        (["train.updates_per_step=3"], "(32) cannot be split", "prompts_per_step=30"),
        (["rollout.responses_per_prompt=1"], "GRPO compares", "responses_per_prompt=8"),
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
        (["data=arithmetic_demos"], "GRPO needs questions", "another algo or data"),
        (["run.name=a/b"], "run.name is a/b", "run.folder"),
        (["run.steps=0"], "run.steps is 0", "above 0"),
        (["run.seed=-1"], "run.seed is -1", "0 or more"),
        (["train.learning_rate=nan"], "train.learning_rate is nan", "0 or more"),
        (["train.learning_rate=inf"], "train.learning_rate is inf", "0 or more"),
        (["reward.max_failed_share=1.5"], "a share is at most 1", "0 to 1"),
        (["train.betas=[0.9,1.0]"], "train.betas is (0.9, 1.0)", "[0, 1)"),
    ],
)
def test_an_impossible_run_is_refused_with_what_to_set(typed: list[str], words: str, advice: str) -> None:
    problem, *rest = refusal(*typed).splitlines()

    assert words in problem
    assert advice in rest[-1]
    assert all(override in rest[0] for override in typed if not override.endswith("="))


def test_questions_alone_cannot_be_imitated() -> None:
    problem, origin, advice = refusal("algo=sft", "data=jsonl", "data.path=rows.jsonl").splitlines()

    assert problem == "SFT needs conversations to learn from, and JsonlData has none."
    assert origin == "  set by: algo=sft on the command line; data=jsonl on the command line"
    assert "another algo or data" in advice


def test_rollout_settings_do_not_matter_offline() -> None:
    assert load("experiment=nano_base", "rollout.temperature=0", "train.updates_per_step=3").algo == SFT()


def test_a_default_that_clashes_is_told_with_its_file() -> None:
    assert "rollout.prompts_per_step in conf/model/nano.yaml" in refusal("train.updates_per_step=5")
