"""Compiled modules, kept between runs where the installation does not keep them. Import-light."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

HEAVY = "torch"
"""The package whose bytecode is looked for: a run's processes import all of it."""


def keep_bytecode() -> Path | None:
    """This process, and all that it starts, compile each module once for all runs. Returns the folder, or None where
    the installation keeps bytecode itself.

    Installers and images that write none (`PYTHONDONTWRITEBYTECODE`, `uv pip install`, a folder that is not ours)
    make every process of every run compile thousands of modules again: longer than to import them.
    """
    if sys.pycache_prefix is not None or _is_kept():
        return None
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heliostat" / "bytecode"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to: everything works, more slowly
        return None
    # Code is read from there: nobody else may have made it, or be able to write to it.
    told = folder.stat()
    if told.st_uid != os.getuid() or told.st_mode & 0o022:
        return None
    sys.pycache_prefix, sys.dont_write_bytecode = str(folder), False
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return folder


def _is_kept() -> bool:
    """Whether the heavy imports are compiled already, or will be beside their sources."""
    found = importlib.util.find_spec(HEAVY)
    if found is None or found.origin is None:
        return True
    cached = Path(importlib.util.cache_from_source(found.origin))
    return cached.exists() or (not sys.dont_write_bytecode and os.access(Path(found.origin).parent, os.W_OK))
