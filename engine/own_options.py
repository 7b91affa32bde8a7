"""An option of one's own: the path of a YAML file in the place of an option's name, `algo=mine/gpg.yaml`.

The file is written as those in conf/ are. Hydra finds options by their place below a folder, so the file is shown to it
in a folder that exists while it composes.
"""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from engine.config_error import ConfigError

PREFIX = "own."
"""Before its name for Hydra: a file of one's own may be called as one of ours is."""


def is_path(choice: object) -> bool:
    """Whether what was typed as a choice is a file, not a name.

    >>> is_path("mine/gpg.yaml"), is_path("grpo")
    (True, False)
    """
    return str(choice).endswith((".yaml", ".yml"))


def own_files(argv: Sequence[str], groups: Collection[str]) -> dict[str, Path]:
    """Group -> the file that was typed as its option.

    >>> own_files(["algo=mine/gpg.yaml", "model=nano", "data.path=rows.yaml"], ["algo", "model", "data"])
    {'algo': PosixPath('mine/gpg.yaml')}
    """
    overrides = OverridesParser.create().parse_overrides(list(argv))
    choices = {one.key_or_group: one.value() for one in overrides if one.key_or_group in groups}
    return {group: Path(choice) for group, choice in choices.items() if is_path(choice)}


def check_file(group: str, path: Path, typed: str, options: Collection[str]) -> None:
    """Raises ConfigError where a file cannot be an option."""
    places = [f"{typed} on the command line"]
    if not path.is_file():
        beside = sorted(str(file) for file in path.parent.glob("*") if is_path(file))
        near = difflib.get_close_matches(str(path), beside, n=1)
        raise ConfigError(
            f"{group} has no option {str(path)!r}: there is no such file in {Path.cwd()}.",
            keys=(group,),
            places=places,
            advice=(f"Did you mean {group}={near[0]}? " if near else "")
            + f"Give the path of a YAML file, or one of ours: {', '.join(options)}.",
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not YAML: {error}", keys=(group,), places=places, advice="Mend the file."
        ) from error
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"{path} holds no keys.",
            keys=(group,),
            places=places,
            advice="Write it as the files in conf/ are: for an algorithm, _target_: package.module.Class.",
        )


@contextmanager
def shown_to_hydra(files: Mapping[str, Path]) -> Iterator[list[str]]:
    """Overrides that choose `files`, one a group, while the block runs."""
    if not files:
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        for group, file in files.items():
            (Path(folder) / group).mkdir()
            shutil.copyfile(file, Path(folder) / group / f"{PREFIX}{file.stem}.yaml")
        yield [
            f"hydra.searchpath=['file://{folder}']",
            *(f"{group}='{PREFIX}{file.stem}'" for group, file in files.items()),
        ]
