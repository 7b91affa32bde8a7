"""Serves a language model as the judge: a plain class, which becomes a Ray actor where its resources are known.

The server is vLLM's own, in a process that this one can kill (`workers.judge_server_child`); what it prints goes where
this process prints. Each run's server has a random key, and answers nobody without it, at any path.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass

import httpx

from workers.config import Device, JudgeConfig
from workers.forked_call import how_it_died
from workers.judge_endpoint import JudgeEndpoint, name_of
from workers.judge_server_child import STARTER
from workers.processes import import_path, kill_tree
from workers.stopped import RunStopped
from workers.vllm_environment import CPU_ENVIRONMENT, VLLM_ENVIRONMENT

SERVER = "workers.judge_server_child"
LOOPBACK = "127.0.0.1"
LOOK_AGAIN_S = 0.2
"""Between two looks whether the server is up."""
FIRST_REPLY_LIMIT_S = 600.0
"""For one token: a GPU's kernels may be compiled for it."""
CHECK_LIMIT_S = 60.0
"""For a server that has nothing else to do to say that it is well."""
ENDING_LIMIT_S = 10.0
"""For a server that failed to end: vLLM looks every five seconds whether its engine is dead."""


class JudgeDied(RunStopped):
    """The judge's server is gone."""


class JudgeCannotAnswer(RunStopped):
    """The judge's server is up, and refuses to be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeServerSetup:
    """What the judge's server is started from."""

    judge: JudgeConfig
    device: Device
    seed: int
    only_here: bool
    """Whether all who ask are on this machine."""


class JudgeServer:
    """One server, from when it answers until it is closed or this process ends."""

    def __init__(self, setup: JudgeServerSetup) -> None:
        """Raises JudgeDied where it cannot start, JudgeCannotAnswer for a model that takes no questions."""
        self._setup = setup
        self._key = secrets.token_urlsafe(32)
        self._address = LOOPBACK if setup.only_here else _own_address()
        self._reaping = threading.Lock()
        self._ended = threading.Event()
        started: Future[tuple[subprocess.Popen[bytes], int]] = Future()
        # A thread that lives as long as the server: the kernel ties the server to it.
        self._keeper = threading.Thread(target=self._keep, args=(started,), daemon=True)
        self._keeper.start()
        self._process, self._port = started.result()
        try:
            self._await_first_reply()
        except BaseException:
            self.close()
            raise

    def endpoint(self) -> JudgeEndpoint:
        """Where and how it is asked."""
        return JudgeEndpoint(url=f"{self._root}/v1", model=name_of(self._setup.judge), key=self._key)

    def check(self) -> None:
        """Raises JudgeDied where the server is gone, or no longer able to answer."""
        with self._asking(limit_s=CHECK_LIMIT_S) as client:
            if not self._is_up(client):
                self._ended.wait(ENDING_LIMIT_S)
                raise self._died()

    def close(self) -> None:
        """Kill the server's processes. Closing twice is fine."""
        with self._reaping:
            if self._process.returncode is None:
                kill_tree(self._process.pid)
        self._keeper.join()

    @property
    def _root(self) -> str:
        return f"http://{self._address}:{self._port}"

    def _keep(self, started: Future[tuple[subprocess.Popen[bytes], int]]) -> None:
        """Start the server, and wait for its end."""
        try:
            process, port = _launched(self._setup, self._address, self._key)
        except BaseException as error:  # handed to the thread that waits in __init__
            started.set_exception(error)
            return
        started.set_result((process, port))
        # Left unreaped, so that its number stays taken until its group has been killed.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._reaping:
            kill_tree(process.pid)
            process.wait()
        self._ended.set()

    def _await_first_reply(self) -> None:
        """One token, so that a model that cannot be asked is told here, and kernels are warm when responses come."""
        question = {
            "model": name_of(self._setup.judge),
            "messages": [{"role": "user", "content": "?"}],
            "max_tokens": 1,
        }
        with self._asking(limit_s=FIRST_REPLY_LIMIT_S) as client:
            while not self._is_up(client):
                if self._ended.wait(LOOK_AGAIN_S):
                    raise self._died()
            try:
                reply = client.post(f"{self._root}/v1/chat/completions", json=question)
            except httpx.TransportError as error:
                self._ended.wait(ENDING_LIMIT_S)
                raise self._died() from error
        if not reply.is_success:
            raise JudgeCannotAnswer(
                f"reward.judge.model is {self._setup.judge.model}, which cannot be asked: its server said "
                f"{reply.text!r:.500} (status {reply.status_code})"
            )

    def _asking(self, *, limit_s: float) -> httpx.Client:
        return httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {self._key}"}, timeout=limit_s)

    def _is_up(self, client: httpx.Client) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return client.get(f"{self._root}/health").is_success
        return False

    def _died(self) -> JudgeDied:
        code = self._process.returncode
        how = "it no longer answers" if code is None else f"its server died: {how_it_died(code)}"
        return JudgeDied(f"the judge {self._setup.judge.model} cannot be asked any more: {how}")


def _launched(setup: JudgeServerSetup, address: str, key: str) -> tuple[subprocess.Popen[bytes], int]:
    """The server's process, and its port; 0 where it died before it had one."""
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            # -P: a `workers` in the current folder must not stand in for ours.
            [sys.executable, "-P", "-m", SERVER, str(writing), address, *_arguments(setup)],
            pass_fds=(writing,),
            stdin=subprocess.DEVNULL,
            env=_environment(setup.device, key),
            start_new_session=True,
        )
    finally:
        os.close(writing)
    with open(reading, "rb") as pipe:
        return process, int(pipe.read() or 0)


def _arguments(setup: JudgeServerSetup) -> list[str]:
    """Everything but the place it listens at, and the key."""
    judge = setup.judge
    given = {
        "model": judge.model,
        "served-model-name": name_of(judge),
        "dtype": judge.precision.value,
        "max-model-len": str(judge.context_length),
        "max-num-seqs": str(judge.max_running),
        "seed": str(setup.seed),
        **(
            {"kv-cache-memory-bytes": str(int(judge.kv_cache_gib * 2**30))}
            if setup.device is Device.CPU
            else {
                "gpu-memory-utilization": str(judge.gpu_memory_share),
                "tensor-parallel-size": str(math.ceil(judge.gpus)),
            }
        ),
    }
    switches = ["--disable-log-stats", "--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    switches += ["--enforce-eager"] if setup.device is Device.CPU else []
    return [part for name, value in given.items() for part in (f"--{name}", value)] + switches


def _environment(device: Device, key: str) -> dict[str, str]:
    return {
        **os.environ,
        **VLLM_ENVIRONMENT,
        **(CPU_ENVIRONMENT if device is Device.CPU else {}),
        # Every process of vLLM's then begins with our file, and dies with the one that started it.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_API_KEY": key,
        STARTER: str(os.getpid()),
        "PYTHONPATH": import_path(),
    }


def _own_address() -> str:
    import ray  # a server for this machine alone needs none

    return ray.util.get_node_ip_address()
