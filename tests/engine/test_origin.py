"""Whence a run's figures come."""

from __future__ import annotations

import re
import subprocess

import pytest

from engine import origin
from engine.config import REPOSITORY, load_config


def test_the_config_hash_changes_with_any_setting_but_the_places() -> None:
    plain = origin.config_hash(load_config([]))
    assert plain == origin.config_hash(load_config(["run.folder=elsewhere", "run.name=other"]))
    assert plain != origin.config_hash(load_config(["train.betas=[0.9,0.99]"]))


def test_the_git_version_is_the_commit_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("the code is in no repository")
    head = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout
    version = re.fullmatch(r"([0-9a-f]{7,})(-dirty)?", origin.git_version())
    assert version and commit.startswith(version[1])
    monkeypatch.setenv("PATH", "")
    assert origin.git_version() == ""
