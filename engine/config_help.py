"""The text of `--help`: written from conf/ and from the dataclasses themselves, so that it cannot be out of date."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path

import yaml

from engine.compose import options_in
from engine.config_error import ConfigError
from engine.schema import MISSING, Leaf, enum_of, leaves_of, open_class

INTRODUCTION = """\
Heliostat: reinforcement learning for language models. Ray runs it, vLLM generates, DeepSpeed learns.

    python -m engine.main [group=option ...] [key=value ...]

Without arguments, a tiny policy learns arithmetic on this machine's CPU.

HOW TO TYPE
    algo=grpo                           choose an option of a group
    algo=mine/gpg.yaml                  or write one: a file like those in conf/algo/
    train.learning_rate=1e-5            set a key; what is typed wins over every file
    train.betas=[0.9,0.95]              a list (quote it where the shell reads brackets)
    reward.arguments={tolerance:0.01}   a mapping; also reward.arguments.tolerance=0.01
    'run.name="a=b"'                    a value with = , : or brackets needs quotes of its own
    run.name=''                         empty
"""

EXAMPLES = """\
EXAMPLES
    python -m engine.main run.steps=10 run.name=first
    python -m engine.main model.path=org/name rollout.max_response_tokens=256 model.context_length=1024
    python -m engine.main data=gsm8k data.path=train.jsonl model.path=../my-model
    python -m engine.main algo=sft data=files data.path=conversations.jsonl
    python -m engine.main reward.function=my_rewards.py:correct
    python -m engine.main experiment=nano_base
"""


def describe(schema: type, *, conf: Path, open_sections: Sequence[str]) -> str:
    """All groups with their options, and all keys with their defaults and meaning."""
    options = options_in(conf)
    parts = [INTRODUCTION, _groups(conf, options), "KEYS, with the defaults of the code (an option may move them)"]
    leaves = leaves_of(schema, {})
    for section in dict.fromkeys(key.partition(".")[0] for key in leaves):
        if section in open_sections:
            parts += _open_section(section, options[section], conf)
        else:
            parts.append(_keys(section, [leaf for leaf in leaves.values() if leaf.key.startswith(f"{section}.")]))
    return "\n".join([*parts, "", EXAMPLES])


def _groups(conf: Path, options: dict[str, tuple[str, ...]]) -> str:
    chosen = _chosen(conf)
    lines = []
    for group, names in options.items():
        shown = ", ".join(f"{name} (default)" if name == chosen.get(group) else name for name in names)
        lines += textwrap.wrap(
            shown,
            width=108,
            initial_indent=f"    {group:<12}",
            subsequent_indent=" " * 16,
            break_on_hyphens=False,
        )
    return "\n".join(["GROUPS, and their options (conf/<group>/<option>.yaml)", *lines, ""])


def _chosen(conf: Path) -> dict[str, str | None]:
    """The option of each group that runs when nothing is typed."""
    entries = yaml.safe_load((conf / "config.yaml").read_text())["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def _open_section(section: str, options: Sequence[str], conf: Path) -> list[str]:
    """Every option's keys with its own values, the default option first; its relatives by how they differ from it."""
    default = _chosen(conf).get(section)
    first: dict[str, Leaf] = {}
    parts = []
    for option in sorted(options, key=lambda option: option != default):
        title = f"{section}.* with {section}={option}"
        try:
            leaves = {leaf.key: leaf for leaf in _leaves_of_option(section, option, conf)}
        except ConfigError as error:
            parts.append(f"\n  {title}: {error.problem}")
            continue
        shared = {key for key, leaf in leaves.items() if key in first and _doc(first[key]) == _doc(leaf)}
        if option == default or 2 * len(shared) < len(first):
            parts.append(_keys(title, list(leaves.values())))
        else:
            own = [leaf for key, leaf in leaves.items() if key not in shared]
            moved = [
                leaf
                for leaf in leaves.values()
                if leaf.key in shared and leaf.default_text() != first[leaf.key].default_text()
            ]
            parts.append(_keys(f"{title}: as {section}={default}, but", own))
            parts += _in_brief("", [_with_value(leaf) for leaf in moved])
            parts += _in_brief("without ", [key for key in first if key not in leaves])
        first = first or leaves
    return parts


def _leaves_of_option(section: str, option: str, conf: Path) -> list[Leaf]:
    """Its keys, with the values that its file gives them."""
    content = yaml.safe_load((conf / section / f"{option}.yaml").read_text())
    # Where a file is written for the whole configuration, its section is one of its keys.
    target = content.get(section, content)
    leaves = leaves_of(open_class(section, target), {}, prefix=f"{section}.")
    written = _written(target, prefix=f"{section}.")
    return [replace(leaf, default=written.get(leaf.key, leaf.default)) for leaf in leaves.values()]


def _written(content: Mapping[str, object], prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in content.items():
        flat |= _written(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _keys(title: str, leaves: Sequence[Leaf]) -> str:
    lines = ["", f"  {title}" + ("" if leaves or title.endswith("but") else " (no keys)")]
    for leaf in leaves:
        lines.append(f"    {_with_value(leaf)}{_choices(leaf)}")
        lines += textwrap.wrap(_doc(leaf), width=108, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def _in_brief(before: str, entries: Sequence[str]) -> list[str]:
    """As many on a line as find room."""
    # A value never breaks away from its key.
    text = before + ", ".join(entry.replace(" ", "\0") for entry in entries)
    lines = textwrap.wrap(text, width=108, initial_indent=" " * 4, subsequent_indent=" " * 4, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines] if entries else []


def _with_value(leaf: Leaf) -> str:
    return f"{leaf.key} = {_value(leaf)}"


def _value(leaf: Leaf) -> str:
    return "<required>" if leaf.default == MISSING else leaf.default_text() or "<required>"


def _doc(leaf: Leaf) -> str:
    return field_docs(leaf.owner).get(leaf.name, "")


def _choices(leaf: Leaf) -> str:
    enum: type[Enum] | None = enum_of(leaf.hint)
    return f"   ({' | '.join(str(member.value) for member in enum)})" if enum else ""


@functools.cache
def field_docs(owner: type) -> dict[str, str]:
    """The sentence under each field of a dataclass, its bases' included."""
    docs: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        if cls.__module__ == "builtins":
            continue
        body = next(
            (
                node.body
                for node in ast.walk(ast.parse(inspect.getsource(sys.modules[cls.__module__])))
                if isinstance(node, ast.ClassDef) and node.name == cls.__name__
            ),
            [],
        )
        for field, doc in itertools.pairwise(body):
            is_text = isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
            if is_text and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                docs[field.target.id] = " ".join(str(doc.value.value).split())
    return docs
