"""A control group of its own for every slot: processes and memory counted together. Both versions, where writable."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "heliostat-"


def make(slot: int, *, memory_mb: int, processes: int) -> list[Path]:
    """Below the groups that this process is in, so that their limits hold, too; none where they cannot be made."""
    name = f"{PREFIX}{os.getpid()}-{slot}"
    made: list[Path] = []
    try:
        for parent, limits in _parents(memory_mb << 20, processes):
            _sweep(parent)
            group = parent / name
            group.mkdir(exist_ok=True)
            made.append(group)
            for file, value in limits.items():
                (group / file).write_text(str(value))
    except OSError:
        remove(made)
        return []
    return made


def remove(groups: list[Path]) -> None:
    for group in groups:
        with suppress(OSError):
            group.rmdir()


def _parents(memory: int, processes: int) -> list[tuple[Path, dict[str, int]]]:
    mine = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            mine[controller] = path.lstrip("/")
    if (ROOT / "pids").is_dir() and (ROOT / "memory").is_dir():
        return [
            (ROOT / "pids" / mine["pids"], {"pids.max": processes}),
            (ROOT / "memory" / mine["memory"], {"memory.limit_in_bytes": memory}),
        ]
    parent = ROOT / mine.get("", "")
    if not {"pids", "memory"} <= set((parent / "cgroup.subtree_control").read_text().split()):
        raise OSError("pids and memory are not handed down here")
    return [(parent, {"pids.max": processes, "memory.max": memory})]


def _sweep(parent: Path) -> None:
    """What processes left behind that were killed."""
    for group in parent.glob(f"{PREFIX}*-*"):
        pid = group.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            remove([group])
