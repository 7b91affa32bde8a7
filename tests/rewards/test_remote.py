"""A reward behind HTTP: three forms, retries, and replies that are no scores; against servers on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rewards import remote
from rewards.score import CannotJudge, FailureKind


@contextmanager
def server(answer: Callable[[dict, int], tuple[int, str]]) -> Iterator[tuple[str, list[dict]]]:
    """Its address, and what it was sent; `answer` takes a body and how many came before."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({**body, "key": self.headers["Authorization"]})
            status, text = answer(body, len(seen) - 1)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", seen
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)


def test_batches_are_sent_in_order_with_their_rows_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with server(lambda body, _: (200, json.dumps({"scores": [len(r) for r in body["responses"]]}))) as (url, seen):
        found = remote.scores(
            ["a", "bb", "ccc"], ["x", "y", "z"], ["p", "q", "r"], url=url, batch=2, key_env="MY_KEY", level=[1, 2, 3]
        )
    assert found == [1.0, 2.0, 3.0]
    assert seen[1] == {
        "prompts": ["r"],
        "responses": ["ccc"],
        "answers": ["z"],
        "rows": [{"level": 3}],
        "key": "Bearer k",
    }


def test_foreign_forms_are_spoken() -> None:
    with server(lambda body, _: (200, '{"rewards": [1]}')) as (url, seen):
        assert remote.scores(["r"], ["a"], ["p"], url=url, form="openrlhf") == [1.0]
    assert seen == [{"query": ["pr"], "prompts": ["p"], "labels": ["a"], "key": None}]
    with server(lambda body, _: (200, '{"scores": [2]}')) as (url, seen):
        assert remote.scores(["r"], ["a"], ["q"], url=url, form="scores") == [2.0]
    assert seen == [{"messages": ["qr"], "key": None}]


@pytest.mark.parametrize(("status", "requests"), [(500, 3), (429, 3), (400, 1), (404, 1)])
def test_a_server_that_fails_is_unavailable_and_only_asked_again_where_that_may_help(
    status: int, requests: int
) -> None:
    with server(lambda *_: (status, "")) as (url, seen), pytest.raises(CannotJudge) as error:
        remote.scores(["r"], ["a"], [""], url=url, retries=2)
    assert (error.value.failure.kind, len(seen)) == (FailureKind.UNAVAILABLE, requests)


def test_a_server_that_recovers_is_believed() -> None:
    with server(lambda _, n: (503, "") if n < 2 else (200, '{"scores": [4]}')) as (url, _):
        assert remote.scores(["r\ud800"], ["a"], [""], url=url, retries=2) == [4.0]


def test_a_server_that_is_gone_is_unavailable() -> None:
    with server(lambda *_: (200, "")) as (url, _):
        pass
    with pytest.raises(CannotJudge) as error:
        remote.scores(["r"], ["a"], [""], url=url, retries=1)
    assert error.value.failure.kind is FailureKind.UNAVAILABLE


@pytest.mark.parametrize(
    "text",
    ["", "no", "[1]", "{}", '{"scores": []}', '{"scores": [1, 2]}', '{"scores": [NaN]}', '{"scores": ["1"]}',
     '{"scores": [null]}', '{"scores": [true]}', '{"scores": 1}', '{"scores": [1e999]}',
     '{"scores": [1' + '0' * 400 + ']}'],
)  # fmt: skip
def test_a_reply_without_a_number_a_response_is_misshaped_and_never_a_zero(text: str) -> None:
    with server(lambda *_: (200, text)) as (url, _), pytest.raises(CannotJudge) as error:
        remote.scores(["r"], ["a"], [""], url=url)
    assert error.value.failure.kind is FailureKind.MISSHAPED
