"""A seccomp filter that lets a Python program compute, and use its own files and threads; all else fails with EPERM.

An allow-list: what a later kernel adds is denied. There is no socket, no fork, no exec, no ptrace, no mount in it.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

from rewards.sandbox import linux

ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "close": (3, 57),
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "poll": (7, None),
    "ppoll": (271, 73),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137),
    "rt_sigpending": (127, 136),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "pause": (34, None),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "select": (23, None),
    "pselect6": (270, 72),
    "sched_yield": (24, 124),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fcntl": (72, 25),
    "flock": (73, 32),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "ftruncate": (77, 46),
    "truncate": (76, 45),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "umask": (95, 166),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "set_tid_address": (218, 96),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "open": (2, None),
    "openat": (257, 56),
    "creat": (85, None),
    "set_robust_list": (273, 99),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "tgkill": (234, 131),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "close_range": (436, 436),
    "copy_file_range": (326, 285),
    "sendfile": (40, 71),
}
"""By name: the number on x86_64 and on aarch64."""
CLONE, CLONE3, IOCTL, PRLIMIT = (56, 220), (435, 435), (16, 29), (302, 261)
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE_THREAD = 0x10000
TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX: what opening a file asks."""

_LOAD, _EQUAL, _AND_SET, _GREATER, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _FIRST, _SECOND = 0, 4, 16, 24
"""Offsets in `struct seccomp_data`; of an argument, its low half."""
X32_BIT = 0x40000000


def install() -> None:
    """For this process, for good; it must have no_new_privs."""
    program = _program()
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    made = Program(len(program) // 8, ctypes.addressof(code))
    linux.prctl(linux.PR_SET_SECCOMP, 2, ctypes.byref(made))


def _program() -> bytes:
    column = 0 if platform.machine() == "x86_64" else 1
    allow, kill = _step(_RETURN, _ALLOW), _step(_RETURN, _KILL)
    deny, absent = _step(_RETURN, _ERRNO | errno.EPERM), _step(_RETURN, _ERRNO | errno.ENOSYS)
    steps = [_step(_LOAD, _ARCH), _step(_EQUAL, AUDIT_ARCH[platform.machine()], 1, 0), kill, _step(_LOAD, _NUMBER)]
    steps += [_step(_GREATER, X32_BIT, 0, 1), kill]
    numbers = [one[column] for one in ALLOWED.values() if one[column] is not None]
    for number in numbers:
        steps += [_step(_EQUAL, number, 0, 1), allow]
    # glibc falls back from clone3, whose flags a filter cannot see, to clone.
    steps += [_step(_EQUAL, CLONE3[column], 0, 1), absent]
    steps += [
        _step(_EQUAL, CLONE[column], 0, 4),
        _step(_LOAD, _FIRST),
        _step(_AND_SET, CLONE_THREAD, 0, 1),
        allow,
        deny,
    ]
    # Limits may be read, and its own ones lowered.
    steps += [_step(_EQUAL, PRLIMIT[column], 0, 4), _step(_LOAD, _FIRST), _step(_EQUAL, 0, 0, 1), allow, deny]
    steps += [_step(_EQUAL, IOCTL[column], 0, 2 + 2 * len(TERMINAL_QUESTIONS)), _step(_LOAD, _SECOND)]
    for question in TERMINAL_QUESTIONS:
        steps += [_step(_EQUAL, question, 0, 1), allow]
    return b"".join([*steps, deny, deny])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
