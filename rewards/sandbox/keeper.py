"""The process that starts programs: it builds the walls once, and forks a process inside them for every program.

It is forked from a minimal interpreter with Python's library loaded. It never holds a program's text, input or output:
files for those are handed on, so that a program finds nothing of an earlier one in the memory that it is forked from.

    launcher (waits; ends all when its parent does) -> keeper (first of its pid namespace) -> one program at a time
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import sysconfig
from contextlib import suppress

from rewards.sandbox import harness, landlock, linux, seccomp

LIBRARY = (
    "array ast base64 bisect bz2 calendar cmath collections collections.abc contextlib copy csv ctypes "
    "dataclasses datetime decimal difflib enum fractions functools gzip hashlib heapq html io itertools json "
    "keyword locale lzma math numbers operator pickle pprint queue random re secrets statistics string struct "
    "textwrap threading time timeit traceback types typing unicodedata uuid zlib zoneinfo "
)
"""Loaded before the walls are up: most programs import some of it."""
WORKDIR = "/tmp"
DEVICES = ("/dev/null", "/dev/urandom")
ROOT_UID, PROGRAM_UID = 0, 1000
"""Inside a user namespace made by root."""
PROGRAM_FD, CHANNEL_FD = 3, 4


class Keeper:
    """The walls of one slot, and what of them this machine gives."""

    def __init__(self, settings: dict[str, object]) -> None:
        self.settings = settings
        self.missing: dict[str, str] = {}
        self.is_root = os.getuid() == 0
        self.uid = int(settings["uid"])
        self.program_uid = self.uid + 1 if self.is_root else -1
        self.landlock = 0
        self.own_pids = -1

    def build(self) -> None:
        """Everything that stays from one program to the next, then a fork into the pid namespace."""
        if not self.settings["has_cgroup"]:
            self.missing["cgroup"] = "none that this user may make"
        if self.is_root:
            self._try("filesystem", self._new_root)
            self._try("user", self._enter_user)
        else:
            self._try("user", self._enter_user)
            self._try("filesystem", self._new_root)
            self.missing["uid"] = "only root has other users to give"
        self._try("landlock", self._find_landlock)
        self._try("seccomp", self._try_seccomp)
        with suppress(OSError):
            linux.unshare(linux.NEWUTS)
        # The pid namespace last: the next process that is forked is its first, and it ends with that one.
        for layer, flag in (("network", linux.NEWNET), ("ipc", linux.NEWIPC), ("pid", linux.NEWPID)):
            self._try(layer, lambda flag=flag: linux.unshare(flag))

    def _try(self, layer: str, build: object) -> None:
        try:
            build()
        except (OSError, KeyError) as error:
            self.missing[layer] = str(error)

    def _enter_user(self) -> None:
        """A user namespace, in which this process is root and outside of which it is nobody."""
        if self.is_root:
            self._enter_as_root()
            self.program_uid = PROGRAM_UID
            return
        uid, gid = os.getuid(), os.getgid()
        linux.unshare(linux.NEWUSER | linux.NEWNS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

    def _enter_as_root(self) -> None:
        # Other users can only be mapped from outside, by a process that has kept its rights there.
        proc = self.settings["proc"]
        here, there = os.pipe()
        told, tell = os.pipe()
        me = os.getpid()
        mapper = os.fork()
        if mapper == 0:
            code = 1
            try:
                os.close(there)
                os.read(here, 1)
                maps = f"{ROOT_UID} {self.uid} 1\n{PROGRAM_UID} {self.uid + 1} 1\n".encode()
                for name in ("uid_map", "gid_map"):
                    fd = os.open(f"{me}/{name}", os.O_WRONLY, dir_fd=proc)
                    os.write(fd, maps)
                    os.close(fd)
                code = 0
            finally:
                os.write(tell, bytes([code]))
                os._exit(code)
        try:
            linux.unshare(linux.NEWUSER | linux.NEWNS)
        finally:
            os.write(there, b"!")
            code = os.read(told, 1)
            os.waitpid(mapper, 0)
            for fd in (here, there, told, tell):
                os.close(fd)
        if code != b"\0":
            raise OSError("the user map could not be written")
        os.setgroups([])
        os.setresgid(ROOT_UID, ROOT_UID, ROOT_UID)
        os.setresuid(ROOT_UID, ROOT_UID, ROOT_UID)

    def _new_root(self) -> None:
        if self.is_root:
            linux.unshare(linux.NEWNS)
        linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
        root = str(self.settings["root"])
        linux.mount("tmpfs", root, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
        for path in _library():
            os.makedirs(root + path, mode=0o755)
            linux.mount(path, root + path, "", linux.MS_BIND)
            flags = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
            linux.mount("none", root + path, "", flags)
            packages = f"{root}{path}/site-packages"
            if os.path.isdir(packages):
                linux.mount("tmpfs", packages, "tmpfs", linux.MS_RDONLY, "size=4k,mode=755")
        os.mkdir(f"{root}/dev", 0o755)
        for device in DEVICES:
            os.close(os.open(root + device, os.O_CREAT | os.O_WRONLY, 0o644))
            linux.mount(device, root + device, "", linux.MS_BIND)
        for folder in (WORKDIR, "/.old"):
            os.mkdir(root + folder, 0o755)
        linux.pivot_root(root, f"{root}/.old")
        os.chdir("/")
        linux.unmount("/.old")
        os.rmdir("/.old")
        flags = linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
        linux.mount("none", "/", "", flags, "size=1m,mode=755")

    def _find_landlock(self) -> None:
        self.landlock = landlock.version()

    def _try_seccomp(self) -> None:
        """In a process that is thrown away."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
                seccomp.install()
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1]:
            raise OSError("the kernel takes no filter")

    def serve(self, control: socket.socket) -> None:
        """Run what is asked for, until the other end closes."""
        control.send(json.dumps({"missing": self.missing}).encode())
        while True:
            message, files, _, _ = socket.recv_fds(control, 4096, 8)
            if not message:
                return
            asked = json.loads(message)
            if asked["do"] == "run":
                status = self._run(asked, files, control)
                control.send(json.dumps(status).encode())

    def _run(self, asked: dict[str, object], files: list[int], control: socket.socket) -> dict[str, object]:
        private = "filesystem" not in self.missing
        if private:
            owner = self.program_uid if self.program_uid >= 0 else 0
            options = f"size={asked['disk_mb']}m,nr_inodes=1024,mode=700,uid={owner},gid={owner}"
            flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
            linux.mount("tmpfs", WORKDIR, "tmpfs", flags, options)
        try:
            program = self._fork(asked, files, control)
            for file in files:
                os.close(file)
            status = _await(program, control)
        finally:
            if private:
                linux.unmount(WORKDIR)
        return {"status": status}

    def _fork(self, asked: dict[str, object], files: list[int], control: socket.socket) -> int:
        if self.own_pids >= 0:
            linux.unshare(linux.NEWPID)
        program = os.fork()
        if program == 0:
            try:
                self._confine(asked, files)
                harness.run(PROGRAM_FD, CHANNEL_FD, asks=bool(asked["asks"]))
            except BaseException as error:
                with suppress(OSError):
                    os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(70)
        if self.own_pids >= 0:
            linux.setns(self.own_pids, linux.NEWPID)
        return program

    def _confine(self, asked: dict[str, object], files: list[int]) -> None:
        """Everything given up, in the order in which it is still allowed to."""
        source, stdin, stdout, stderr, channel = (os.dup2(fd, 100 + n) for n, fd in enumerate(files))
        for given, wanted in ((stdin, 0), (stdout, 1), (stderr, 2), (source, PROGRAM_FD), (channel, CHANNEL_FD)):
            os.dup2(given, wanted)
        os.closerange(CHANNEL_FD + 1, 4096)
        for kind in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(kind, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if "filesystem" not in self.missing:
            os.chdir(WORKDIR)
        _limit(asked)
        if self.landlock:
            # Opened now: the program's user may not reach the folders that the library lies in.
            writable = [WORKDIR] if "filesystem" not in self.missing else []
            rules = landlock.rules_for(self.landlock, readable=_library(), writable=writable, devices=DEVICES)
        linux.drop_bounds()
        if self.is_root:
            os.setgroups([])
            os.setresgid(self.program_uid, self.program_uid, self.program_uid)
            os.setresuid(self.program_uid, self.program_uid, self.program_uid)
        linux.drop_capabilities()
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        if self.landlock:
            landlock.restrict(rules)
        if "seccomp" not in self.missing:
            seccomp.install()


def _await(program: int, control: socket.socket) -> int:
    """Until it ends; killed when told to, or when nobody waits for it any more."""
    ended = os.pidfd_open(program)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(control, select.POLLIN)
    gone = False
    while True:
        ready = dict(poll.poll())
        if ended in ready:
            break
        message = control.recv(4096)
        os.kill(program, signal.SIGKILL)
        if not message:
            gone = True
            break
    # Of the first process of a pid namespace, this returns when all others in it are gone, too.
    status = os.waitpid(program, 0)[1]
    os.close(ended)
    if gone:
        sys.exit()
    return status


def _limit(asked: dict[str, object]) -> None:
    memory = int(asked["memory_mb"]) << 20
    for kind, value in (
        (resource.RLIMIT_CPU, int(asked["cpu_s"])),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_STACK, min(memory // 4, 64 << 20)),
        (resource.RLIMIT_FSIZE, int(asked["disk_mb"]) << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, int(asked["processes"])),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _library() -> list[str]:
    """Folders of Python's own library."""
    paths = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    return sorted(path for path in paths if not any(path != other and path.startswith(f"{other}/") for other in paths))


def main(settings: dict[str, object], control: socket.socket) -> None:
    """The launcher: settings from the parent, then the keeper in a process of its own, which ends with this one."""
    parent = os.pidfd_open(int(settings["parent"]))
    for name in LIBRARY.split():
        importlib.import_module(name)
    sys.path[:] = [path for path in sys.path if path != settings["code"]]
    settings["proc"] = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    keeper = Keeper(settings)
    keeper.build()
    os.close(int(settings["proc"]))
    gc.collect()
    gc.freeze()
    child = os.fork()
    if child == 0:
        os.close(parent)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if "pid" not in keeper.missing:
            keeper.own_pids = _own_pids()
        keeper.serve(control)
        os._exit(0)
    control.close()
    ended = os.pidfd_open(child)
    select.select([parent, ended], [], [])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _own_pids() -> int:
    """This process's pid namespace, without a /proc: a pidfd stands for it."""
    return os.pidfd_open(os.getpid())
