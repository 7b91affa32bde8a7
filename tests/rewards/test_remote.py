"""A reward behind HTTP: three forms, retries, and replies that are no scores; against servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engine.judging import reward_specs
from rewards import remote
from rewards.item import Item
from rewards.score import CannotJudge, Failure, FailureKind, Judgement, Score
from workers.config import RewardConfig
from workers.reward_pool import RewardPool
from workers.reward_worker import limits_of


@contextmanager
def server(answer: Callable[[dict, int], tuple[int, str | bytes]], **headers: str) -> Iterator[tuple[str, list[dict]]]:
    """Its address, and what it was sent; `answer` takes a body and how many came before."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told = {"key": self.headers["Authorization"], "accepts": self.headers["Accept-Encoding"]}
            seen.append({**body, **told})
            status, text = answer(body, len(seen) - 1)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who asked may have read enough
                self.wfile.write(text.encode() if isinstance(text, str) else text)

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", seen
    finally:
        http.shutdown()
        http.server_close()


@contextmanager
def talker(*says: bytes, every_s: float = 0.02, repeated: int = 1_000_000) -> Iterator[str]:
    """The address of a server that takes requests and says these bytes, the last ones again and again."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def talk(line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            for number in range(repeated if says else 0):
                line.sendall(says[min(number, len(says) - 1)])
                if ended.wait(every_s):
                    return
            ended.wait()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def ask(responses: Sequence[str] = ("r",), **settings: object) -> list[float]:
    number = len(responses)
    return asyncio.run(remote.scores(responses, ["a"] * number, ["p"] * number, **settings))


def failure_of(responses: Sequence[str] = ("r",), **settings: object) -> Failure:
    with pytest.raises(CannotJudge) as caught:
        ask(responses, **settings)
    return caught.value.failure


def pooled(url: str, *, reward_timeout_s: float, **settings: object) -> tuple[Judgement, ...]:
    """What two responses to a prompt get, as in a run."""
    arguments = {"url": url, **settings}
    config = RewardConfig(function="rewards.remote:scores", arguments=arguments, timeout_s=reward_timeout_s)
    items = [
        Item(id=f"0/{n}", response="r", answer="a", prompt="p", messages=(), from_text=True, token_ids=(), row={})
        for n in range(2)
    ]
    with closing(RewardPool(reward_specs(config), limits_of(config), processes=1)) as pool:
        return pool.judge(0, items).result()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)


def test_batches_are_sent_in_order_with_their_rows_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with server(lambda body, _: (200, json.dumps({"scores": [len(r) for r in body["responses"]]}))) as (url, seen):
        texts = (["a", "bb", "ccc"], ["x", "y", "z"], ["p", "q", "r"])
        found = asyncio.run(remote.scores(*texts, url=url, batch=2, key_env="MY_KEY", level=[1, 2, 3]))
    assert found == [1.0, 2.0, 3.0]
    assert seen[1] == {
        "prompts": ["r"],
        "responses": ["ccc"],
        "answers": ["z"],
        "rows": [{"level": 3}],
        "key": "Bearer k",
        "accepts": "identity",
    }


def test_foreign_forms_are_spoken() -> None:
    with server(lambda body, _: (200, '{"rewards": [1]}')) as (url, seen):
        assert ask(url=url, form="openrlhf") == [1.0]
    assert seen == [{"query": ["pr"], "prompts": ["p"], "labels": ["a"], "key": None, "accepts": "identity"}]
    with server(lambda body, _: (200, '{"scores": [2]}')) as (url, seen):
        assert ask(url=url, form="scores") == [2.0]
    assert seen == [{"messages": ["pr"], "key": None, "accepts": "identity"}]


@pytest.mark.parametrize(
    ("status", "requests"),
    [(500, 3), (502, 3), (503, 3), (504, 3), (429, 3), (408, 3)]
    + [(status, 1) for status in (302, 400, 401, 403, 404, 413, 422)],
)
def test_a_server_that_fails_is_unavailable_and_only_asked_again_where_that_may_help(
    status: int, requests: int
) -> None:
    with server(lambda *_: (status, "the model is not loaded")) as (url, seen):
        failure = failure_of(url=url, retries=2)
    assert (failure.kind, len(seen)) == (FailureKind.UNAVAILABLE, requests)
    assert f"status {status}, 'the model is not loaded'" in failure.reason


def test_a_server_that_recovers_is_believed() -> None:
    with server(lambda _, n: (503, "") if n < 2 else (200, '{"scores": [4]}')) as (url, _):
        assert ask(["r\ud800"], url=url, retries=2) == [4.0]


def test_a_server_that_is_gone_is_unavailable() -> None:
    with server(lambda *_: (200, "")) as (url, _):
        pass
    failure = failure_of(url=url, retries=1)
    assert failure.kind is FailureKind.UNAVAILABLE and "asked 2 times; at last: ConnectError" in failure.reason


@pytest.mark.parametrize(
    "text",
    ["", "no", "[1]", "{}", '{"scores": []}', '{"scores": [1, 2]}', '{"scores": [NaN]}', '{"scores": ["1"]}',
     '{"scores": [null]}', '{"scores": [true]}', '{"scores": 1}', '{"scores": [1e999]}',
     '{"scores": [1' + '0' * 400 + ']}', '{"scores": [1' + '0' * 5000 + ']}', "[" * 60_000, b"\xff\xfe\xff",
     gzip.compress(b'{"scores": [1]}', mtime=0)],
)  # fmt: skip
def test_a_reply_without_a_number_a_response_is_misshaped_and_never_a_zero(text: str | bytes) -> None:
    with server(lambda *_: (200, text)) as (url, seen):
        assert failure_of(url=url).kind is FailureKind.MISSHAPED
    assert len(seen) == 1


@pytest.mark.parametrize("number", [1, 64])
def test_a_reply_may_be_as_long_as_its_scores_need_and_not_longer(number: int) -> None:
    most = remote.REPLY_BYTES + remote.SCORE_BYTES * number
    scores = json.dumps({"scores": [-1.2345678901234567e-100] * number})
    with server(lambda *_: (200, scores.ljust(most))) as (url, _):
        assert ask(["r"] * number, url=url) == [-1.2345678901234567e-100] * number
    with server(lambda *_: (200, scores.ljust(most + 1))) as (url, seen):
        failure = failure_of(["r"] * number, url=url)
    assert failure.kind is FailureKind.MISSHAPED and len(seen) == 1
    assert f"more than the {most} bytes" in failure.reason


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


def test_a_reply_without_an_end_is_cut_off_at_once() -> None:
    with talker(HEAD + b'{"scores": [', b"1, " * 20_000, every_s=0.0) as url:
        started = time.monotonic()
        assert failure_of(url=url, timeout_s=30.0).kind is FailureKind.MISSHAPED
        assert time.monotonic() - started < 2.0


def test_a_complaint_without_an_end_is_still_a_complaint() -> None:
    with talker(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"no " * 20_000, every_s=0.0) as url:
        failure = failure_of(url=url, timeout_s=30.0)
    assert failure.kind is FailureKind.UNAVAILABLE and "status 400, 'no no no" in failure.reason
    assert len(failure.reason) < 500


def test_a_compressed_reply_is_not_asked_for_and_not_unpacked() -> None:
    """A few thousand bytes may be a thousand times as many."""
    bomb = gzip.compress(b'{"scores": [1]' + b" " * 10_000_000 + b"}")
    with server(lambda *_: (200, bomb), Content_Encoding="gzip") as (url, seen):
        assert len(bomb) < remote.REPLY_BYTES
        assert failure_of(url=url).kind is FailureKind.MISSHAPED
    assert seen[0]["accepts"] == "identity"


@pytest.mark.parametrize(
    "says",
    [(), (b"H",), (b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"), (HEAD,), (HEAD, b"1"), (HEAD + b'{"scores": [1', b" ")],
    ids=["nothing", "a letter", "headers for ever", "a head", "a digit at a time", "a blank at a time"],
)
def test_a_server_that_never_ends_its_answer_is_unavailable_within_the_time_of_its_tries(says: Sequence[bytes]) -> None:
    """However often a byte comes."""
    with talker(*says) as url:
        started = time.monotonic()
        failure = failure_of(url=url, retries=2, timeout_s=0.15)
        took_s = time.monotonic() - started
    assert failure.kind is FailureKind.UNAVAILABLE and "asked 3 times" in failure.reason
    assert "within 0.15 s" in failure.reason or says == (b"H",)
    assert took_s < 3 * 0.15 + 0.3


def test_in_the_pool_a_server_that_hangs_is_unavailable_and_not_a_reward_that_hangs() -> None:
    with talker() as url:
        said = pooled(url, reward_timeout_s=5.0, timeout_s=0.1, retries=1)
    assert [one.kind for one in said if isinstance(one, Failure)] == [FailureKind.UNAVAILABLE] * 2
    with server(lambda body, _: (200, json.dumps({"scores": [0.5] * len(body["responses"])}))) as (url, seen):
        assert pooled(url, reward_timeout_s=5.0) == (Score(total=0.5, parts={"scores": 0.5}),) * 2
    assert len(seen) == 1  # for both


def waits_of(retry_after: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Before the second, third and fourth attempt at a server that is busy and says so."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(remote.asyncio, "sleep", sleep)
    with server(lambda *_: (429, ""), Retry_After=retry_after) as (url, _):
        failure_of(url=url, retries=3)
    return waited


@pytest.mark.parametrize("asked", ["3", "03", "000000003"])
def test_a_server_that_asks_for_seconds_gets_them(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits_of(asked, monkeypatch) == [3.0] * 3


@pytest.mark.parametrize("zone", ["GMT", "+0000"])
def test_a_server_that_asks_for_a_date_gets_it(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    then = email.utils.formatdate(time.time() + 20, usegmt=True).replace("GMT", zone)
    assert all(18.0 < seconds <= 20.0 for seconds in waits_of(then, monkeypatch))


@pytest.mark.parametrize("asked", ["61", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_no_server_may_ask_for_more_than_a_minute(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits_of(asked, monkeypatch) == [remote.MAX_PAUSE_S] * 3


@pytest.mark.parametrize(
    "asked", ["", "0", "-5", "soon", "\u0663", "1.5", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", "Mon, 99 Oct 99999999999"]
)
def test_otherwise_the_pauses_double(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.5)
    monkeypatch.setattr(BaseHTTPRequestHandler, "send_header", _send_header_in_any_script)
    waits = waits_of(asked, monkeypatch)
    assert len(waits) == 3 and all(0.25 * 2**n <= seconds <= 0.5 * 2**n for n, seconds in enumerate(waits))


def _send_header_in_any_script(handler: BaseHTTPRequestHandler, name: str, value: str) -> None:
    handler.wfile.write(b"")
    handler._headers_buffer.append(f"{name}: {value}\r\n".encode())
