"""The system calls that the standard library lacks, through ctypes. A call that fails raises OSError."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}


def called(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: object) -> int:
    longs = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return called(_libc.syscall(ctypes.c_long(number), *longs), f"system call {number}")


def unshare(flags: int) -> None:
    called(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    called(_libc.setns(fd, kind), "setns")


def prctl(option: int, *arguments: object) -> int:
    longs = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments]
    longs += [ctypes.c_ulong(0)] * (4 - len(longs))
    return called(_libc.prctl(option, *longs), f"prctl {option}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode() or None
    )
    called(result, f"mount {target}")


def unmount(target: str) -> None:
    called(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    syscall(_PIVOT_ROOT[platform.machine()], ctypes.c_char_p(new.encode()), ctypes.c_char_p(old.encode()))


def drop_bounds() -> None:
    """No capability can be won by what this process becomes."""
    for capability in range(LAST_CAPABILITY + 1):
        # Beyond the kernel's last one, or without the right to: nothing is left to drop then.
        with suppress(OSError):
            prctl(PR_CAPBSET_DROP, capability)


def drop_capabilities() -> None:
    """All that this process has."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    syscall(_CAPSET[platform.machine()], header, nothing)
