"""LLaMA-Factory's `dataset_info.json`: data sets by name, each with its place, its form and its columns.

Left out on purpose: scripts that load data, other hubs, cloud storage, video and audio; they are refused by name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.data.base import DataError
from engine.data.forms import Columns, Format
from engine.data.sources import HubSet, Source, local
from engine.data.turns import CALL, Tags

REGISTRY = "dataset_info.json"
FORMATS = {"alpaca": Format.ALPACA, "sharegpt": Format.SHAREGPT, "openai": Format.OPENAI}
COLUMNS = {"prompt", "query", "response", "history", "messages", "system", "tools", "images", "chosen", "rejected"}
LABEL = "kto_tag"
NOT_READ = ("videos", "audios")
PLACES = ("file_name", "hf_hub_url")
OTHER_PLACES = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
TAGS = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", CALL),
    "system_tag": ("system", "system"),
}
"""Each with its default, and with our role."""


def registry_of(path: str) -> Path | None:
    """The registry that a path names: the file itself, or the folder that holds it."""
    place = Path(path)
    file = place / REGISTRY if place.is_dir() else place
    return file if file.name == REGISTRY and file.is_file() else None


def find_named(registry: Path, name: str) -> Source:
    """A data set by its name. Raises DataError for people."""
    entries = _entries(registry)
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        here = [other for other, entry in entries.items() if (registry.parent / str(entry.get("file_name"))).exists()]
        raise DataError(
            f"no data set {name!r}.", where=str(registry), advice=f"{hint}Those with a file here: {', '.join(here)}."
        )
    entry, where = entries[name], f"{registry}, {name}"
    for column in NOT_READ:
        if column in entry.get("columns", {}):
            raise DataError(f"it has {column}.", where=where, advice="Only text and images are read.")
    source = _placed(registry, entry, where)
    return replace(
        source,
        label=name,
        path=f"{registry}, {name}",
        format=_format(entry, where),
        columns=_columns(entry, where),
        tags=_tags(entry),
        pairs=bool(entry.get("ranking", False)),
        num_rows=int(entry.get("num_samples") or 0),
    )


def _entries(registry: Path) -> Mapping[str, Mapping[str, Any]]:
    try:
        entries = json.loads(registry.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=str(registry), advice="Mend the file.") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise DataError("not a registry.", where=str(registry), advice="Give {name: {file_name: ...}, ...}.")
    return entries


def _placed(registry: Path, entry: Mapping[str, Any], where: str) -> Source:
    if "file_name" in entry:
        place = registry.parent / entry["file_name"]
        if not place.exists():
            raise DataError(f"no such file: {place}.", where=where, advice="Put it there, or choose other data.names.")
        return local(place, split="", path=where)
    if "hf_hub_url" in entry:
        split, subset, folder = (entry.get(key) or "" for key in ("split", "subset", "folder"))
        hub = HubSet(path=entry["hf_hub_url"], subset=subset, split=split or "train", folder=folder)
        return Source(label=where, path=where, hub=hub)
    own = [key for key in OTHER_PLACES if key in entry]
    raise DataError(
        f"its place is {own[0] if own else 'nowhere'}.", where=where, advice=f"Only {' and '.join(PLACES)} are read."
    )


def _format(entry: Mapping[str, Any], where: str) -> Format:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in FORMATS:
        raise DataError(f"formatting is {formatting!r}.", where=where, advice=f"It is one of: {', '.join(FORMATS)}.")
    return FORMATS[formatting]


def _columns(entry: Mapping[str, Any], where: str) -> Columns:
    given = {role: name for role, name in (entry.get("columns") or {}).items() if name}
    unknown = given.keys() - COLUMNS - {LABEL}
    if unknown:
        raise DataError(
            f"unknown column {min(unknown)!r}.", where=where, advice=f"There are {', '.join(sorted(COLUMNS))}, {LABEL}."
        )
    # A text without turns is a prompt to LLaMA-Factory.
    text = {"text": given["prompt"]} if "prompt" in given else {}
    label = {"label": given[LABEL]} if LABEL in given else {}
    return Columns(**{role: name for role, name in given.items() if role in COLUMNS}, **text, **label)


def _tags(entry: Mapping[str, Any]) -> Tags | None:
    """None where it has none: then turns say themselves in which of the usual ways they are written."""
    given = entry.get("tags")
    if not given:
        return None
    roles = tuple((given.get(tag, default), role) for tag, (default, role) in TAGS.items())
    return Tags(role=given.get("role_tag", "from"), content=given.get("content_tag", "value"), roles=roles)
