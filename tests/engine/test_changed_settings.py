"""A saved run's settings with others typed on top: as if the run had been composed with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from engine.config import ConfigError, load_config
from engine.saved_config import saved_config
from engine.tracking import plain


def saved(folder: Path, *overrides: str) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(load_config(overrides)), sort_keys=False))
    return folder


@pytest.mark.parametrize(
    ("own", "typed", "together"),
    [
        (
            ["algo=ppo", "algo.kl_target=0.01"],
            ["algo.kl_coef=0.5", "critic.learning_rate=1e-3", "train.betas=[0.8,0.9]"],
            [
                "algo=ppo",
                "algo.kl_target=0.01",
                "algo.kl_coef=0.5",
                "critic.learning_rate=1e-3",
                "train.betas=[0.8,0.9]",
            ],
        ),
        (
            # What the one algorithm was told is told to no other; what the other's file says beside it counts.
            ["algo=grpo", "algo.clip_high=0.9", "train.learning_rate=3e-5"],
            ["algo=gspo", "algo.kl_coef=0.5"],
            ["algo=gspo", "algo.kl_coef=0.5", "train.learning_rate=3e-5"],
        ),
        (
            ["algo=gspo"],
            ["train.updates_per_step=2", "algo=grpo_verl", "algo.correction.cap=3"],
            ["algo=grpo_verl", "algo.correction.cap=3", "train.updates_per_step=2"],
        ),
        (
            ["algo=dapo", "reward.arguments={tolerance:0.01}"],
            ["algo.dynamic_sampling={draw_ahead:2.0}"],
            ["algo=dapo", "reward.arguments={tolerance:0.01}", "algo.dynamic_sampling.draw_ahead=2.0"],
        ),
    ],
)
def test_a_saved_run_with_other_settings_is_the_run_composed_with_them(
    tmp_path: Path, own: list[str], typed: list[str], together: list[str]
) -> None:
    found = saved_config(saved(tmp_path, *own), typed)
    assert found == replace(load_config(together), run=found.run)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("algo=gpso", "Did you mean algo=gspo?"),
        ("model=nano", "chooses a model"),
        ("algo.clip_hihg=0.3", "Did you mean algo.clip_high"),
        ("train.learning_rate=fast", "train.learning_rate takes a number"),
        ("train.updates_per_step=7", "train.updates_per_step=7 on the command line"),
        ("train.learning_rate", "not an override"),
    ],
)
def test_a_mistake_in_them_is_told_as_it_is_for_a_run(tmp_path: Path, typed: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        saved_config(saved(tmp_path, "algo=grpo"), [typed])
    assert told in str(error.value)
