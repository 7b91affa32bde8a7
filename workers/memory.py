"""How much memory a process holds, and the most that each verb of a worker took, also on its GPU. Import-light."""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil

GIB = 2**30
RESET_PEAK = "5"
"""What the kernel is told to make a process's peak its present size (proc_pid_clear_refs(5))."""
_in_verb: ContextVar[bool] = ContextVar("in_verb", default=False)


class Peaks:
    """One process's, by verb. Verbs that run side by side share what they see."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._seen: dict[str, float] = {}

    @contextmanager
    def of(self, verb: str) -> Iterator[None]:
        """A verb that another one calls is a part of that one."""
        if _in_verb.get():
            yield
            return
        token = _in_verb.set(True)
        with self._lock:
            if not self._running:
                _reset()
            self._running += 1
        try:
            yield
        finally:
            _in_verb.reset(token)
            with self._lock:
                self._running -= 1
                for name, gib in _peaks(verb).items():
                    self._seen[name] = max(self._seen.get(name, 0.0), gib)

    def take(self) -> dict[str, float]:
        """Since this was last asked: `<verb>_gib` resident, and `<verb>_device_gib` allocated where there is a GPU; and
        `resident_gib`, what the process holds now."""
        with self._lock:
            seen, self._seen = self._seen, {}
        return {**seen, "resident_gib": resident_gib()}


def resident_gib() -> float:
    """Of this process now. Not what it shares with others (files, Ray's object store): that is not its own to keep."""
    own = _status("RssAnon")
    # No such line outside Linux, and under some sandboxes.
    return (psutil.Process().memory_info().rss if own is None else own) / GIB


def _on_gpu() -> Any:
    """torch.cuda, where this process uses it already."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _reset() -> None:
    # Not ours to write in some containers: then a peak is the largest since the process began.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    if (cuda := _on_gpu()) is not None:
        cuda.reset_peak_memory_stats()


def _peaks(verb: str) -> dict[str, float]:
    peaks = {f"{verb}_gib": _resident_peak() / GIB}
    if (cuda := _on_gpu()) is not None:
        peaks[f"{verb}_device_gib"] = cuda.max_memory_allocated() / GIB
    return peaks


def _resident_peak() -> int:
    peak = _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if peak is None else peak


def _status(name: str) -> int | None:
    """Bytes, as the kernel tells them of this process (proc_pid_status(5)); None where it does not."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            [line] = [line for line in status if line.startswith(f"{name}:")]
    except (OSError, ValueError):
        return None
    return int(line.split()[1]) * 1024
