"""Landlock: which paths a process may touch, said by the process itself. A second wall behind the mount namespace."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from rewards.sandbox import linux

CREATE, ADD_RULE, RESTRICT = 444, 445, 446
"""The same on every architecture."""
READ = 1 << 2 | 1 << 3
"""Files and folders."""
WRITE = READ | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8
"""And remove and make files and folders: no device, no socket, no link."""
FILE = 1 << 1 | 1 << 2


def version() -> int:
    """The kernel's; raises OSError where there is none."""
    return linux.syscall(CREATE, 0, 0, 1)


def rules_for(abi: int, *, readable: Sequence[str], writable: Sequence[str], devices: Sequence[str]) -> int:
    """Nothing but these paths, no TCP, and no signal or abstract socket beyond the process: rules as an open file."""
    rights = (1 << (13 if abi == 1 else 14 if abi == 2 else 15 if abi < 5 else 16)) - 1
    allowed = rights & ((1 << 13) - 1 if abi < 3 else (1 << 15) - 1)
    attributes = struct.pack("QQQ", rights, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    rules = linux.syscall(CREATE, ctypes.c_char_p(attributes), size, 0)
    # A file may be truncated from ABI 3 on; before, that right does not exist.
    write = WRITE | (1 << 14 if abi >= 3 else 0)
    for paths, right in ((readable, READ), (writable, write & allowed), (devices, FILE)):
        for path in paths:
            _allow(rules, path, right)
    return rules


def restrict(rules: int) -> None:
    """Follow these rules from here on; the process must have no_new_privs."""
    linux.syscall(RESTRICT, rules, 0)
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    linux.syscall(ADD_RULE, rules, 1, ctypes.c_char_p(struct.pack("=Qi", rights, fd)), 0)
    os.close(fd)
