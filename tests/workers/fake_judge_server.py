"""Stands in for `workers.judge_server_child`, without vLLM: the same arguments, the same ties, a process of its own.

The name of the model says how it behaves: `refuses`, `exits`, or else it gives every response a 7.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from workers.judge_server_child import die_with_starter

if __name__ in ("__main__", "__mp_main__"):
    die_with_starter()

ASKED = re.compile(r"one line: (Score [0-9a-f]{10}): ")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._say(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] == "refuses":
            self._say(400, {"error": "no chat template"})
            return
        mark = ASKED.search(body["messages"][0]["content"])
        content = f"{mark[1]}: 7" if mark and body["max_tokens"] == 99 else "?"
        self._say(200, {"choices": [{"message": {"content": content}}]})

    def _say(self, status: int, reply: dict[str, object]) -> None:
        allowed = self.headers["Authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}"
        self.send_response(status if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: object) -> None: ...


def main() -> None:
    pipe, address, *settings = sys.argv[1:]
    if settings[settings.index("--served-model-name") + 1] == "exits":
        sys.exit(3)
    multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,)).start()
    server = ThreadingHTTPServer((address, 0), Handler)
    os.write(int(pipe), str(server.server_port).encode())
    os.close(int(pipe))
    server.serve_forever()


if __name__ == "__main__":
    main()
