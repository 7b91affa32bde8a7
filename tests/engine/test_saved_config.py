"""A run's folder says which run it was: its settings come back as they were."""

from __future__ import annotations

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
    "overrides",
    [
        ["algo=grpo"],
        ["algo=ppo", "critic.learning_rate=1e-4", "train.betas=[0.8,0.9]"],
        ["experiment=nano_base", "tuning=lora", "tuning.targets=[q_proj]", "rendering.overlong=drop"],
        ["algo=dapo", "reward.arguments={tolerance:0.01}"],
    ],
)
def test_settings_come_back_as_they_were(tmp_path: Path, overrides: list[str]) -> None:
    assert saved_config(saved(tmp_path, *overrides)) == load_config(overrides)


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.yaml, so it is no run's folder"):
        saved_config(tmp_path)


def test_a_setting_that_is_not_known_any_more_is_told(tmp_path: Path) -> None:
    file = saved(tmp_path, "algo=grpo") / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["train"]["gone"] = 1
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=r"train\.gone"):
        saved_config(tmp_path)
