"""What a job brings along to a cluster, and the overrides that it is told there.

A job runs in a working directory of its own: our packages, and those of the person's files that the run reads. Paths
in the overrides become places in it. Left out on purpose: models of the person's own, which are large; files that a
reward or an algorithm opens itself, and modules that it imports under a computed name.
"""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from engine.compose import options_in
from engine.config import CONF, REPOSITORY, Config
from engine.config_error import ConfigError
from engine.data.registry import REGISTRY
from engine.data.sources import is_hub_id, place_and_split
from engine.judging import reward_specs
from engine.model_checks import models_of
from engine.own_options import own_files
from rewards.beside import PACKAGES, imported_files
from rewards.calling import BoundReward
from rewards.load import RewardError
from rewards.spec import RewardSpec

EXAMPLES = REPOSITORY / "examples"
MAX_BYTES = 100 << 20
"""Of everything that is sent: it passes through the cluster's head node, and from there to every machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """One file, here and there.

    Example:
        SentFile(source=Path("/home/me/rows.jsonl"), place="inputs/data.path/rows.jsonl")
    """

    source: Path
    place: str
    """Relative to the job's working directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one setting of the run brings along."""

    files: tuple[SentFile, ...] = ()
    settings: Mapping[str, str | Sequence[str]]
    """Key -> its value for the job, where that is another one than here."""
    notes: tuple[str, ...] = ()
    """What the person should know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPackage:
    """A whole job."""

    files: tuple[SentFile, ...]
    overrides: tuple[str, ...]
    """For `engine.main` in the job's working directory."""
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return _size(self.files)

    def write(self, folder: Path) -> None:
        """Copies every file to its place below `folder`."""
        for file in self.files:
            target = folder / file.place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.source, target)


def pack(argv: Sequence[str], config: Config) -> JobPackage:
    """The job that does what `argv` asks for, composed as `config`. Nothing is copied yet.

    Raises ConfigError or RewardError for a file that is missing, broken, or too large to be sent.
    """
    ours = tuple(file for name in PACKAGES for file in _below(REPOSITORY / name, place=name))
    parts = [Part(files=ours, settings={"cluster.address": "auto"}), _rewards(config)]
    parts += [_model(argv, key, path) for key, path in models_of(config).items()]
    parts += [_module(type(section).__module__) for section in (config.algo, config.data)]
    parts += [_own_option(group, file) for group, file in own_files(argv, options_in(CONF)).items()]
    for key, paths in _data_paths(config).items():
        parts.append(_data_list(key, paths, parts))
    package = JobPackage(
        files=_files_of(parts),
        overrides=rewritten(argv, {key: value for part in parts for key, value in part.settings.items()}),
        notes=tuple(note for part in parts for note in part.notes),
    )
    if package.num_bytes > MAX_BYTES:
        raise ConfigError(
            f"the job would bring {_mib(package.num_bytes)} along, and at most {_mib(MAX_BYTES)} are sent.",
            advice="Put large files on storage that the cluster's machines share, and name absolute paths there.",
        )
    return package


def rewritten(argv: Sequence[str], settings: Mapping[str, str | Sequence[str]]) -> tuple[str, ...]:
    """The overrides with other values for some keys.

    >>> rewritten(["algo=grpo", "++data.path=my rows.jsonl"], {"data.path": "inputs/my rows.jsonl"})
    ('algo=grpo', "data.path='inputs/my rows.jsonl'")
    """
    kept = [text for text in argv if _key(text) not in settings]
    # At the end: what comes later wins, also over a section given as a mapping.
    return (*kept, *(f"{key}={_typed(value)}" for key, value in settings.items()))


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0].strip()


def _typed(value: str | Sequence[str]) -> str:
    return _quoted(value) if isinstance(value, str) else f"[{','.join(map(_quoted, value))}]"


def _quoted(value: str) -> str:
    plain = all(letter.isalnum() or letter in "_-./:" for letter in value)
    return value if plain else QuotedString(text=value, quote=Quote.single).with_quotes()


# ----------------------------------------------------------------------------- the parts


def _model(argv: Sequence[str], key: str, path: str) -> Part:
    folder = Path(path).absolute()
    if folder.resolve().is_relative_to(EXAMPLES):
        place = folder.resolve().relative_to(REPOSITORY).as_posix()
        # The path that a model's own file names is found there as here; a typed one would mean another model.
        is_typed = any(_key(text) == key for text in argv)
        return Part(files=_below(folder, place=place), settings={key: place} if is_typed else {})
    if not folder.exists() and not Path(path).is_absolute():
        return Part(settings={})  # a hub id
    return Part(
        settings={key: str(folder)},
        notes=(f"the model is not sent: every machine of the cluster must find {folder}",),
    )


def _own_option(group: str, file: Path) -> Part:
    place = f"inputs/{group}/{file.name}"
    return Part(files=(SentFile(source=file.absolute(), place=place),), settings={group: place})


def _data_paths(config: Config) -> dict[str, tuple[str, ...]]:
    """The data set's settings that name files."""
    names = [name for name in type(config.data).__dataclass_fields__ if name == "path" or name.endswith("_path")]
    values = {name: getattr(config.data, name) for name in names}
    lists = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in values.items()}
    return {f"data.{name}": paths for name, paths in lists.items() if any(paths)}


def _data_list(key: str, paths: Sequence[str], others: Sequence[Part]) -> Part:
    """Several files are told apart by number where they have one name."""
    parts: list[Part] = []
    names = [Path(path).absolute().name for path in paths]
    for number, path in enumerate(paths):
        folder = f"{key}/{number}" if names.count(names[number]) > 1 else key
        parts.append(_data(key, path, folder, room=MAX_BYTES - _size(_files_of([*others, *parts]))))
    settings = [part.settings.get(key, path) for part, path in zip(parts, paths, strict=True)]
    return Part(
        files=_files_of(parts),
        settings={key: settings[0] if len(settings) == 1 else settings} if settings != list(paths) else {},
        notes=tuple(note for part in parts for note in part.notes),
    )


def _data(key: str, path: str, folder: str, *, room: int) -> Part:
    """Sent where it fits; an absolute path that does not fit, or is not here, is one of the cluster's."""
    base, split = place_and_split(path)
    file = Path(base)
    if not file.exists():
        if file.is_absolute():
            return Part(settings={}, notes=(f"{key} is not sent: the cluster must have {path}",))
        if is_hub_id(base):
            return Part(settings={})
        raise ConfigError(
            f"{key} is {path}: no such file.",
            keys=(key,),
            advice=f"Paths are relative to {Path.cwd()}; a file that only the cluster has needs an absolute path.",
        )
    place = f"inputs/{folder}/{file.absolute().name}"
    if file.is_dir():
        files = _below(file, place=place)
    elif file.name == REGISTRY:  # it names files beside it
        files = _below(file.absolute().parent, place=f"inputs/{folder}")
    else:
        files = (SentFile(source=file.absolute(), place=place),)
    if _size(files) <= room:
        return Part(files=files, settings={key: f"{place}@{split}" if split else place})
    if file.is_absolute():
        return Part(
            settings={}, notes=(f"{key} is not sent, it has {_mib(_size(files))}: the cluster must have {path}",)
        )
    raise ConfigError(
        f"{key} is {path}, which has {_mib(_size(files))}: a job brings at most {_mib(MAX_BYTES)} along.",
        keys=(key,),
        advice=f"Put it on storage that the cluster's machines share, and set {key} to its absolute path there.",
    )


def _rewards(config: Config) -> Part:
    """Every reward function's file."""
    keys = ["reward.function"] if config.reward.function else []
    keys += [f"reward.functions.{name}.function" for name in config.reward.functions]
    specs = reward_specs(config.reward) if config.algo.online else ()
    parts = [_reward(key, spec) for key, spec in zip(keys, specs, strict=False)]
    return Part(
        files=_files_of(parts),
        settings={key: value for part in parts for key, value in part.settings.items()},
        notes=tuple(note for part in parts for note in part.notes),
    )


def _reward(key: str, own: RewardSpec) -> Part:
    """A reward's file, with the modules beside it that it imports. It is loaded here first, as the job will."""
    source, spec = own.source, own.source.spec
    notes: tuple[str, ...] = ()
    try:
        BoundReward(own)
    except RewardError as error:
        cause = error.__cause__
        if not isinstance(cause, ImportError) or (cause.name or "").split(".")[0] in PACKAGES:
            raise
        notes = (f"{spec} could not be tried here ({cause}); the cluster may have what it imports",)
    if not source.file:
        module = _module(spec.rpartition(":")[0])
        return Part(files=module.files, settings={}, notes=notes)
    file = Path(source.file)
    place = f"inputs/{key}"
    return Part(
        files=_with_imports(file, root=file.parent, place=place),
        settings={key: f"{place}/{file.name}:{source.name}"},
        notes=notes,
    )


def _module(name: str) -> Part:
    """A module of the person's own (an algorithm's, a reward's), at the place where the same import finds it."""
    if name.split(".")[0] in PACKAGES:
        return Part(settings={})
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return Part(settings={})
    file = Path(spec.origin).resolve()
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    if any(file.is_relative_to(folder) for folder in installed):
        return Part(settings={})
    depth = name.count(".") + (file.name == "__init__.py")
    return Part(files=_with_imports(file, root=file.parents[depth], place=""), settings={})


def _with_imports(file: Path, *, root: Path, place: str) -> tuple[SentFile, ...]:
    """A Python file, and those below `root` that it imports, directly or not, each at its own place below `place`."""
    return tuple(
        SentFile(source=source, place=(Path(place) / source.relative_to(root)).as_posix())
        for source in imported_files(file, root=root)
    )


# ----------------------------------------------------------------------------- files


def _below(folder: Path, *, place: str) -> tuple[SentFile, ...]:
    """Every file below a folder, caches aside."""
    sources = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return tuple(SentFile(source=path, place=(Path(place) / path.relative_to(folder)).as_posix()) for path in sources)


def _files_of(parts: Iterable[Part]) -> tuple[SentFile, ...]:
    """Each once, also where two parts import the same module."""
    return tuple(dict.fromkeys(file for part in parts for file in part.files))


def _size(files: Iterable[SentFile]) -> int:
    return sum(file.source.stat().st_size for file in files)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
