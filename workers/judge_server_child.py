"""The process that serves the judge: `python -m workers.judge_server_child <pipe> <address> <arguments of vLLM>`.

It is vLLM's OpenAI-compatible server, at a port that it takes itself and writes into the pipe. The key comes by the
environment (`VLLM_API_KEY`), which `ps` does not show. Processes that vLLM starts import this file before anything
else: each dies with the one that started it, and so all of them with the run, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from workers.processes import die_with

STARTER = "HELIOSTAT_STARTED_BY"
"""The environment variable with the number of the process that started this one."""


def die_with_starter() -> None:
    """Ties this process to the one that started it, and those that it will start to itself."""
    die_with(int(os.environ[STARTER]))
    os.environ[STARTER] = str(os.getpid())


if __name__ in ("__main__", "__mp_main__"):  # the server, and what it starts by multiprocessing
    die_with_starter()


def main() -> None:
    pipe, address, *settings = sys.argv[1:]
    # vLLM takes seconds to import, and its other processes need none of this.
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.middleware import authenticate
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # vLLM asks for the key below /v1, and would answer everybody at /invocations.
    authenticate.GUARDED_PREFIX = ("/",)
    # The server itself begins to listen, when it can answer; the port is taken from here on.
    listener = socket.socket()
    listener.bind((address, 0))
    port = listener.getsockname()[1]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([*settings, "--host", address, "--port", str(port)])
    validate_parsed_serve_args(args)
    os.write(int(pipe), str(port).encode())
    os.close(int(pipe))
    asyncio.run(run_server_worker(f"http://{address}:{port}", listener, args))


if __name__ == "__main__":
    main()
