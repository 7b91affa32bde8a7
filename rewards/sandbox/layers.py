"""Which walls there are around a program, and what to say of them to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LAYERS = {
    "pid": "sees and signals no process but its own; killing it leaves nothing",
    "network": "a network of its own, without any interface up",
    "filesystem": "Python's library, read-only, and a private folder of limited size; no other file",
    "seccomp": "no socket, fork, exec, ptrace or mount: system calls on an allow-list",
    "limits": "CPU time, memory, file size, open files, no core; no new privileges; no capabilities",
    "ipc": "no shared memory or queue but its own",
    "user": "root inside is nobody outside",
    "uid": "a user of its own for every slot",
    "landlock": "paths, TCP and signals once more",
    "cgroup": "processes and memory counted together",
}
REQUIRED = ("pid", "network", "filesystem", "seccomp", "limits")
"""Without one of these no program is run, unless a person names it in `allow_missing`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One wall.

    Example:
        Layer(name="network", missing="unshare: Operation not permitted")
    """

    name: str
    missing: str
    """Why it is not there; empty if it is."""


def layers_of(missing: Mapping[str, str]) -> tuple[Layer, ...]:
    return tuple(Layer(name=name, missing=missing.get(name, "")) for name in LAYERS)


def refusal(layers: Sequence[Layer], allow_missing: Sequence[str]) -> str:
    """What to tell people where too little is there; empty where enough is."""
    unknown = sorted(set(allow_missing) - set(LAYERS))
    if unknown:
        return f"allow_missing names {', '.join(unknown)}; there are: {', '.join(LAYERS)}"
    lacking = [
        layer for layer in layers if layer.missing and layer.name in REQUIRED and layer.name not in allow_missing
    ]
    if not lacking:
        return ""
    why = "; ".join(f"{layer.name} ({layer.missing})" for layer in lacking)
    names = ", ".join(layer.name for layer in lacking)
    return (
        f"programs of a policy are not run here: this machine does not give {why}. Run where user "
        f"namespaces are allowed, or accept programs without these walls: reward.arguments.allow_missing=[{names}]"
    )


def table(layers: Sequence[Layer]) -> str:
    """For people.

    >>> print(table([Layer(name="pid", missing=""), Layer(name="uid", missing="not root")]))
    pid         yes  sees and signals no process but its own; killing it leaves nothing
    uid         no   a user of its own for every slot (not root)
    """
    rows = []
    for layer in layers:
        reason = f" ({layer.missing})" if layer.missing else ""
        rows.append(f"{layer.name:<11} {'no ' if layer.missing else 'yes'}  {LAYERS[layer.name]}{reason}")
    return "\n".join(rows)
