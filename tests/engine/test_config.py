"""What a run is told comes out typed, and what is typed on the command line wins."""

import dataclasses
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine import compose
from engine.algorithms.correction import Correction, ImportanceWeight
from engine.algorithms.dapo import DAPO
from engine.algorithms.dynamic_sampling import DynamicSampling, Exhausted
from engine.algorithms.grpo import GRPO
from engine.algorithms.sft import SFT
from engine.algorithms.shaping import Shaping, Truncated
from engine.config import (
    CONF,
    OPEN_SECTIONS,
    REPOSITORY,
    ChecksConfig,
    Config,
    ConfigError,
    Resume,
    help_text,
    load_config,
)
from engine.data.arithmetic import ArithmeticData, ArithmeticDemos
from engine.tracking import plain
from workers.config import EngineKind, FunctionConfig, Precision, Weights

BLANK = ("model=nano",)


def load(*overrides: str) -> Config:
    return load_config([*BLANK, *overrides])


# ----------------------------------------------------------------------------- what comes out


def test_everything_that_comes_out_is_a_plain_typed_value() -> None:
    config = load("algo.clip_high=1", "rollout.engine=hf", "model.precision=bfloat16", "run.resume=never")

    assert config.algo == GRPO(clip_high=1.0)
    assert type(config.algo.clip_high) is float
    assert config.data == ArithmeticData()
    assert config.rollout.engine is EngineKind.HF
    assert config.model.precision is Precision.BFLOAT16
    assert config.run.resume is Resume.NEVER
    assert config.train.betas == (0.9, 0.999)
    modules = {type(value).__module__ for section in vars(config).values() for value in _values(section)}
    assert not [module for module in modules if module.startswith("omegaconf")]


def _values(section: object) -> list[object]:
    return [
        section,
        *(vars(section) if not dataclasses.is_dataclass(section) else dataclasses.asdict(section)).values(),
    ]


@pytest.mark.parametrize("typed", ["bfloat16", "BFLOAT16"])
def test_an_enum_is_typed_by_value_or_by_name(typed: str) -> None:
    assert load(f"model.precision={typed}").model.precision is Precision.BFLOAT16


def test_the_default_run_names_itself_after_its_choices() -> None:
    config = load()

    assert config.run.name == "grpo-nano-arithmetic"
    assert config.run_folder == Path("runs/grpo-nano-arithmetic")
    assert load("algo=sft", "data=arithmetic_demos").run.name == "sft-nano-arithmetic_demos"
    assert load("run.name=mine", "run.folder=/elsewhere").run_folder == Path("/elsewhere/mine")


def test_data_brings_its_reward_and_what_is_typed_wins() -> None:
    assert load().reward.function == "rewards.number:exact"
    assert load("data=gsm8k").reward.function == "rewards.gsm8k:correct"
    assert load("reward.function=mine.py:f", "data=gsm8k").reward.function == "mine.py:f"


def test_a_model_moves_defaults_and_what_is_typed_wins() -> None:
    assert load().train.learning_rate == 3e-4
    assert load("train.learning_rate=3e-5").train.learning_rate == 3e-5


def test_an_experiment_chooses_options_and_what_is_typed_wins() -> None:
    config = load_config(["experiment=nano_base"])

    assert config.algo == SFT()
    assert isinstance(config.data, ArithmeticDemos)
    assert config.data.near_misses == (1,)
    assert config.model.weights is Weights.RANDOM
    assert Path(config.model.path).samefile(REPOSITORY / "examples/nano/blank")
    assert config.run.name == "nano_base"
    assert load_config(["experiment=nano_base", "data.near_miss_share=0.1"]).data.near_miss_share == 0.1


def test_keys_of_a_mapping_are_free_and_their_values_are_typed() -> None:
    assert load("reward.arguments.tolerance=1").reward.arguments == {"tolerance": 1}
    given = load("reward.arguments={tolerance: 0.5, tags: [a, b], unit: cm}").reward.arguments
    assert given == {"tolerance": 0.5, "tags": ["a", "b"], "unit": "cm"}


def test_further_reward_functions_have_names_of_the_persons_own() -> None:
    config = load("reward.functions.tidy.function=my.py:tidy", "reward.functions.tidy.weight=0.1").reward
    assert config.functions == {"tidy": FunctionConfig(function="my.py:tidy", weight=0.1)}
    for override, said in (
        ("reward.functions.tidy.wieght=1", "Did you mean reward.functions.tidy.weight"),
        ("reward.functions.tidy.weight=heavy", "reward.functions.tidy.weight takes a number"),
        ("reward.functions.tidy.convention=trll", "Did you mean trl"),
        ("reward.functions.tidy=my.py:tidy", "reward.functions.tidy is a section"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(override)
        assert said in str(caught.value), str(caught.value)
    assert "reward.functions.<name>.weight = 1.0" in help_text()


def test_a_plus_that_hydra_would_ask_for_is_taken_too() -> None:
    assert load("+run.seed=3").run.seed == load("++run.seed=3").run.seed == load("run.seed=3").run.seed == 3


def test_the_shipped_model_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(load().model.path) == REPOSITORY / "examples/nano/policy"


def test_a_typed_path_is_relative_to_where_the_person_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    (mine / "model.safetensors").write_text("")
    monkeypatch.chdir(tmp_path)

    assert load_config(["model.path=mine"]).model.path == "mine"
    assert load_config(["model.path=organisation/name"]).model.path == "organisation/name"


def test_a_tuple_setting_of_an_algorithm_of_ones_own_is_a_tuple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_algorithm", _module_with(Ranged))
    config = load("algo._target_=my_algorithm.Ranged", "algo.clip=[0.1,0.4]")

    assert config.algo == Ranged(clip=(0.1, 0.4))
    with pytest.raises(ConfigError, match="takes 2 values, and was given 3"):
        load("algo._target_=my_algorithm.Ranged", "algo.clip=[1,2,3]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranged(GRPO):
    clip: tuple[float, float] = (0.2, 0.2)


def _module_with(cls: type) -> object:
    module = type(sys)("my_algorithm")
    vars(module)[cls.__name__] = cls
    return module


# ----------------------------------------------------------------------------- what the workers are told


def test_the_team_hears_of_every_optimizer_step_and_of_the_reference() -> None:
    team = load("run.steps=7", "train.updates_per_step=4", "run.seed=5").team()

    assert team.policy_updates == 28
    assert team.seed == 5
    assert team.rollout_workers
    assert team.reference
    assert Path(team.log_folder) == Path.cwd() / "runs/grpo-nano-arithmetic/logs"


def test_each_epoch_of_a_step_has_its_updates_and_offline_there_is_one() -> None:
    twice = ("run.steps=7", "train.updates_per_step=4", "train.epochs_per_step=2")
    assert load(*twice).team().policy_updates == 56
    assert (
        load("algo=sft", "data=arithmetic_demos", "run.steps=7", "train.epochs_per_step=2").team().policy_updates == 7
    )


def test_a_critic_is_on_the_team_where_the_algorithm_asks_for_one() -> None:
    assert not load().team().has_critic
    team = load("algo=ppo", "run.steps=7", "algo.critic_warmup_steps=2", "critic.learning_rate=3e-5").team()

    assert team.has_critic and team.reference
    assert (team.policy_updates, team.critic_updates) == (5, 7)  # the policy waits for two steps
    assert (team.critic.path, team.critic.learning_rate) == ("", 3e-5)


def test_a_critic_s_own_model_is_found_as_the_policy_s_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = load("algo=ppo", "critic.path=examples/nano/policy")
    assert Path(shipped.critic.path) == REPOSITORY / "examples/nano/policy"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    (mine / "model.safetensors").write_text("")
    assert load("algo=ppo", "critic.path=mine").team().critic.path == str(mine)
    assert load("algo=ppo", "critic.path=organisation/name").team().critic.path == "organisation/name"
    assert not load("critic.path=not/a/folder/here").team().has_critic  # nobody loads it


def test_no_reference_is_kept_without_a_kl_term_and_none_offline() -> None:
    assert not load("algo.kl_coef=0").team().reference
    offline = load("experiment=nano_base").team()
    assert not offline.reference
    assert not offline.rollout_workers


def test_bounds_come_from_the_precision_unless_they_are_set() -> None:
    checks = ChecksConfig(ratio_deviation=0.25)

    assert dataclasses.astuple(checks.bounds(Precision.FLOAT32)) == (1e-3, 5e-2, 0.25, 1e-4)
    assert dataclasses.astuple(checks.bounds(Precision.BFLOAT16)) == (5e-2, 10.0, 0.25, 5e-2)
    assert load("model.precision=bfloat16").bounds.ratio_deviation == 0.5


# ----------------------------------------------------------------------------- settings of an algorithm


def test_settings_within_an_algorithm_s_settings_are_typed_one_by_one() -> None:
    config = load(
        "algo=dapo",
        "algo.shaping.clip=[-inf,2]",
        "algo.shaping.truncated=mask",
        "algo.dynamic_sampling.exhausted=fill",
        "algo.correction.weight=sequence_mask",
        "algo.correction.geometric_high=1.01",
    )

    assert config.algo == DAPO(
        shaping=Shaping(clip=(-math.inf, 2.0), overlong_share=0.2, truncated=Truncated.MASK),
        dynamic_sampling=DynamicSampling(enabled=True, exhausted=Exhausted.FILL),
        correction=Correction(weight=ImportanceWeight.SEQUENCE_MASK, geometric_high=1.01),
    )


@pytest.mark.parametrize("option", compose.options_in(CONF)["algo"])
def test_what_a_run_writes_down_of_an_algorithm_is_read_back_as_the_same(option: str, tmp_path: Path) -> None:
    """`config.yaml` of a run, its numbers without end included."""
    data = ("data=arithmetic_demos",) if option == "sft" else ()
    algorithm = load(f"algo={option}", *data).algo
    written = yaml.safe_load(yaml.safe_dump(plain(algorithm)))
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "algo/again.yaml").write_text(yaml.safe_dump(_without_nested_targets(written)))
    again = compose.compose(["algo=again"], Config, conf=conf, open_sections=OPEN_SECTIONS).config

    assert again.algo == algorithm


def _without_nested_targets(written: dict[str, object]) -> dict[str, object]:
    """Only the section itself names its class."""
    return {
        name: {key: value for key, value in part.items() if key != "_target_"} if isinstance(part, dict) else part
        for name, part in written.items()
    }


# ----------------------------------------------------------------------------- help


def test_help_shows_every_key_with_its_default_and_every_option() -> None:
    text = help_text()

    for section in dataclasses.fields(Config)[2:]:
        for field in dataclasses.fields(section.default_factory):
            assert f"\n    {section.name}.{field.name}" in text
    for options in compose.options_in(CONF).values():
        assert all(option in text for option in options)
    assert "train.betas = [0.9,0.999]" in text
    assert "model.precision = float32   (float32 | bfloat16)" in text
    assert "algo.clip_low = 0.2" in text
    assert "data.near_miss_share = 0.6" in text
    assert "Data-parallel trainer processes." in text  # the sentence under train.ranks


def test_help_explains_an_algorithm_s_settings_once_and_says_how_each_option_differs() -> None:
    text = help_text()
    grpo, dapo, ppo, verl = (_section(text, option) for option in ("grpo", "dapo", "ppo", "grpo_verl"))

    assert "    algo.shaping.overlong_share = 0.0\n        Last share of the length limit" in grpo
    assert "    algo.shaping.truncated = keep   (keep | mask | set | scale)" in grpo
    assert "    algo.shaping.clip = [-inf,inf]" in grpo and "    algo.correction.drift_limit = inf" in grpo
    assert text.count("Last share of the length limit") == 1
    assert dapo.splitlines()[0] == "  algo.* with algo=dapo: as algo=grpo, but"
    assert sorted(re.findall(r"algo\.[\w.]+ = [^,\s]+", dapo)) == [
        "algo.aggregation = token-mean",
        "algo.clip_high = 0.28",
        "algo.dynamic_sampling.enabled = true",
        "algo.kl_coef = 0.0",
        "algo.shaping.overlong_share = 0.2",
    ]
    assert "    algo.lam = 0.95\n        GAE's lambda" in ppo and "without algo.scale, algo.std_ddof" in ppo
    assert "algo.correction.weight = none" in verl and "algo.clip_dual = 3.0" in verl  # what its file says
    assert max(len(line) for line in text.splitlines() if "|" not in line) <= 120


def _section(text: str, option: str) -> str:
    start = text.index(f"  algo.* with algo={option}")
    return text[start : text.index("\n\n", start)]


def test_settings_and_help_import_nothing_heavy() -> None:
    program = (
        "import sys; from engine.config import help_text, load_config; help_text();"
        f"load_config({list(BLANK)!r});"
        "print([name for name in ('torch', 'ray', 'transformers', 'vllm', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_epochs_become_steps_once_the_rows_are_known() -> None:
    offline = load("algo=sft", "data=arithmetic_demos", "run.epochs=1.5", "train.examples_per_step=64")
    assert offline.for_rows(100).run.steps == 3  # 150 rows, 64 a step
    assert offline.for_rows(1).run.steps == 1
    online = load("run.epochs=2", "rollout.prompts_per_step=8")
    assert online.for_rows(30).run.steps == 8  # 60 prompts, 8 a step
    assert load("run.steps=7").for_rows(1000).run.steps == 7
    assert offline.for_rows(100).team().policy_updates == 3, "the schedule ends with them"
