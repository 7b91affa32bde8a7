"""A reward that a server of yours computes: responses go out by HTTP, scores come back.

Settings of proxies in the environment are not followed: responses go to `url` and nowhere else.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import functools
import json
import os
import random
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from rewards.score import CannotJudge, FailureKind, clipped

FORMS = ("heliostat", "openrlhf", "scores")
MAX_PAUSE_S = 60.0
FIRST_PAUSE_S = 0.5
REPLY_BYTES = 1 << 16
"""Of a reply, for whatever a server says beside the scores; OpenRLHF's sends what it logs."""
SCORE_BYTES = 1 << 10
"""Of a reply, for each score; a number takes 25 at most."""
COMPLAINT_BYTES = 1 << 10
"""Of a reply that is none: enough to see what was wrong."""


async def scores(
    responses: Sequence[str],
    answers: Sequence[str],
    prompts: Sequence[str],
    *,
    url: str,
    form: str = "heliostat",
    batch: int = 64,
    retries: int = 4,
    timeout_s: float = 30.0,
    key_env: str = "",
    **columns: Sequence[object],
) -> list[float]:
    """One score a response, from the server at `url`; called for several responses at once (convention `batch`).

    `form` is what the server speaks: `heliostat`
    `{"prompts", "responses", "answers", "rows"}` -> `{"scores"}`; `openrlhf`
    `{"query", "prompts", "labels"}` -> `{"rewards"}`; `scores`, LLaMA-Factory's, `{"messages"}` -> `{"scores"}`. A
    prompt is sent as the policy read it. `key_env`
    names the environment variable that holds a bearer token. Raises CannotJudge where the server does not answer
    (UNAVAILABLE), or not with one finite number a response (MISSHAPED), as where it replies with more than
    `REPLY_BYTES` and `SCORE_BYTES` for each. `timeout_s` is for one attempt, from connecting to the last byte. All
    attempts together have the reward's own `reward.timeout_s`: give it room for them, or a slow server is a TIMEOUT.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it is one of {', '.join(FORMS)}: set it in the reward's arguments")
    found: list[float] = []
    async with client_with(headers_for(key_env)) as client:
        for start in range(0, len(responses), batch):
            part = slice(start, start + batch)
            rows = {name: column[part] for name, column in columns.items()}
            body = body_of(form, responses[part], answers[part], prompts[part], rows)
            number = len(responses[part])
            most_bytes = REPLY_BYTES + SCORE_BYTES * number
            reply = await post(client, url, body, retries=retries, timeout_s=timeout_s, most_bytes=most_bytes)
            found += numbers_of(reply, "rewards" if form == "openrlhf" else "scores", number)
    return found


def body_of(
    form: str,
    responses: Sequence[str],
    answers: Sequence[str],
    prompts: Sequence[str],
    columns: dict[str, Sequence[object]],
) -> dict[str, object]:
    """What is sent, in the server's form."""
    if form == "heliostat":
        rows = [{name: column[index] for name, column in columns.items()} for index in range(len(responses))]
        return {"prompts": list(prompts), "responses": list(responses), "answers": list(answers), "rows": rows}
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    if form == "scores":
        return {"messages": texts}
    return {"query": texts, "prompts": list(prompts), "labels": list(answers)}


def headers_for(key_env: str) -> dict[str, str]:
    """A bearer token from the environment variable `key_env`, if it names one."""
    if not key_env:
        return {}
    if not os.environ.get(key_env):
        raise ValueError(f"key_env names {key_env}, which is not set where rewards run; set it, or leave key_env out")
    return {"Authorization": f"Bearer {os.environ[key_env]}"}


def client_with(headers: Mapping[str, str]) -> httpx.AsyncClient:
    """No limits of its own: `post` has them."""
    return httpx.AsyncClient(trust_env=False, timeout=None, headers=dict(headers), verify=_certificates())


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: they take longer to read than many a server takes to answer."""
    return httpx.create_ssl_context(trust_env=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    status: int
    asked_to_wait: str
    content: bytes
    """Cut off beyond the most that was wanted."""


async def post(
    client: httpx.AsyncClient,
    url: str,
    body: Mapping[str, object],
    *,
    retries: int,
    timeout_s: float,
    most_bytes: int,
) -> object:
    """The JSON of the server's reply. Asked again after no answer, 408, 429 and 5xx.

    Raises CannotJudge: UNAVAILABLE where no attempt is answered within `timeout_s`, MISSHAPED where the answer is no
    JSON or has more than `most_bytes`.
    """
    # Pure ASCII: a response may hold half of a surrogate pair, which UTF-8 cannot.
    content, said, attempt = json.dumps(body), "", 0
    for attempt in range(retries + 1):
        asked_to_wait = ""
        try:
            async with asyncio.timeout(timeout_s):  # httpx's own begins anew with each byte that comes
                reply = await _asked(client, url, content, most_bytes)
        except TimeoutError:
            said = f"nothing, or not all of it, within {timeout_s:g} s"
        except httpx.TransportError as error:
            said = f"{type(error).__name__} {error}".strip()
        else:
            if reply.status // 100 == 2:
                return _read(reply, url, most_bytes)
            said = f"status {reply.status}" + (f", {clipped(reply.content)[1:]}" if reply.content else "")
            asked_to_wait = reply.asked_to_wait
            if reply.status < 500 and reply.status not in (408, 429):
                break
        if attempt < retries:
            await asyncio.sleep(pause_s(attempt, asked_to_wait, content))
    times = "once" if attempt == 0 else f"{attempt + 1} times"
    raise CannotJudge(FailureKind.UNAVAILABLE, f"{url} gave no answer, asked {times}; at last: {said}")


async def _asked(client: httpx.AsyncClient, url: str, content: str, most_bytes: int) -> _Reply:
    """Not compressed: a thousand times as many bytes might come of those that were counted."""
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    async with client.stream("POST", url, content=content, headers=headers) as reply:
        wanted = most_bytes if reply.is_success else COMPLAINT_BYTES
        received = bytearray()
        async for chunk in reply.aiter_raw():
            received += chunk
            if len(received) > wanted:
                break
        asked_to_wait = reply.headers.get("Retry-After", "")
        return _Reply(status=reply.status_code, asked_to_wait=asked_to_wait, content=bytes(received[: wanted + 1]))


def _read(reply: _Reply, url: str, most_bytes: int) -> object:
    if len(reply.content) > most_bytes:
        raise CannotJudge(FailureKind.MISSHAPED, f"{url} replied with more than the {most_bytes} bytes that are read")
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError) as error:
        shown = clipped(reply.content)[1:]
        raise CannotJudge(FailureKind.MISSHAPED, f"{url} replied with something that is no JSON: {shown}") from error


def pause_s(attempt: int, asked_to_wait: str, content: str) -> float:
    """Before the next attempt: twice as long each time, so that those who ask for different things at the same time do
    not come back together; longer where the server asks for it (`Retry-After`, in seconds or a date), up to
    `MAX_PAUSE_S`.

    >>> pause_s(0, "7", ""), pause_s(0, "99999", ""), 0.25 <= pause_s(0, "Wed, 21 Oct 2015 07:28:00 GMT", "") <= 0.5
    (7.0, 60.0, True)
    """
    own = FIRST_PAUSE_S * 2 ** min(attempt, 20) * random.Random(f"{attempt}/{content}").uniform(0.5, 1.0)
    return min(max(own, _asked_s(asked_to_wait)), MAX_PAUSE_S)


def _asked_s(asked_to_wait: str) -> float:
    """0 for what is neither seconds nor a date."""
    if asked_to_wait.isascii() and asked_to_wait.isdigit():
        return float(asked_to_wait[:9])
    try:
        then = email.utils.parsedate_to_datetime(asked_to_wait)
    except (ValueError, OverflowError):
        return 0.0
    now = datetime.datetime.now(datetime.UTC)
    return (then.replace(tzinfo=then.tzinfo or datetime.UTC) - now).total_seconds()


def numbers_of(reply: object, key: str, number: int) -> list[float]:
    """The reply's scores. Raises CannotJudge unless they are `number` finite numbers, below 1e300."""
    values = reply.get(key) if isinstance(reply, dict) else None
    if not isinstance(values, list) or len(values) != number:
        raise CannotJudge(FailureKind.MISSHAPED, f"the server's reply has no list {key!r} of {number} numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise CannotJudge(FailureKind.MISSHAPED, f"the server's {key} hold {value!r:.100}, which is no number")
    return [float(value) for value in values]
