"""Where a run's figures come from: what is needed to make them again."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass

from engine.config import REPOSITORY, Config
from engine.fingerprint import fingerprint, flattened

PLACES = ("run.folder", "run.name")
"""Settings that say where the figures go, and nothing about what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A run's command, code, settings and seed.

    Example:
        Origin(command="python -m engine.main run.steps=10", git="fc94212", config="865d82c3...", seed=0)
    """

    command: str
    git: str
    """The commit, `-dirty` where files differ from it; empty where the code is in no repository."""
    config: str
    """A hash of all settings."""
    seed: int


def origin_of(config: Config) -> Origin:
    """Of the run that this process is."""
    return Origin(
        command=shlex.join(["python", "-m", "engine.main", *sys.argv[1:]]),
        git=git_version(),
        config=config_hash(config),
        seed=config.run.seed,
    )


def config_hash(config: Config) -> str:
    """Equal for runs that do the same, wherever their folders are."""
    return fingerprint({key: value for key, value in flattened(config).items() if key not in PLACES})


def git_version() -> str:
    """Of Heliostat's own code; empty where it is in no repository, or git is not there or does not trust it."""
    if not ((REPOSITORY / ".git").exists() and shutil.which("git")):
        return ""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"]
    described = subprocess.run(command, capture_output=True, text=True)
    return described.stdout.strip() if described.returncode == 0 else ""
