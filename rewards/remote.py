"""A reward that a server of yours computes: responses go out by HTTP, scores come back.

Settings of proxies in the environment are not followed: responses go to `url` and nowhere else.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence

import httpx

from rewards.score import CannotJudge, FailureKind

FORMS = ("heliostat", "openrlhf", "scores")
MAX_PAUSE_S = 60.0
FIRST_PAUSE_S = 0.5


def scores(
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
    (UNAVAILABLE), or not with one finite number a response (MISSHAPED). All attempts together have the reward's own
    `reward.timeout_s`: give it room for them.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it is one of {', '.join(FORMS)}: set it in the reward's arguments")
    found: list[float] = []
    with httpx.Client(trust_env=False, timeout=timeout_s, headers=headers_for(key_env)) as client:
        for start in range(0, len(responses), batch):
            part = slice(start, start + batch)
            rows = {name: column[part] for name, column in columns.items()}
            body = body_of(form, responses[part], answers[part], prompts[part], rows)
            reply = post(client, url, body, retries=retries)
            found += numbers_of(reply, "rewards" if form == "openrlhf" else "scores", len(responses[part]))
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


def post(client: httpx.Client, url: str, body: dict[str, object], *, retries: int) -> object:
    """The JSON of the server's reply. Asked again after no answer, 408, 429 and 5xx. Raises CannotJudge."""
    # Pure ASCII: a response may hold half of a surrogate pair, which UTF-8 cannot.
    content, said = json.dumps(body), ""
    for attempt in range(retries + 1):
        asked_to_wait = ""
        try:
            reply = client.post(url, content=content, headers={"Content-Type": "application/json"})
            if reply.is_success:
                return reply.json()
            said = f"status {reply.status_code}"
            asked_to_wait = reply.headers.get("Retry-After", "")
            if reply.status_code < 500 and reply.status_code not in (408, 429):
                break
        except httpx.TransportError as error:
            said = type(error).__name__
        except ValueError as error:
            raise CannotJudge(FailureKind.MISSHAPED, f"{url} replied with something that is no JSON") from error
        if attempt < retries:
            time.sleep(pause_s(attempt, asked_to_wait, content))
    raise CannotJudge(FailureKind.UNAVAILABLE, f"{url} gave no answer: {said}")


def pause_s(attempt: int, asked_to_wait: str, content: str) -> float:
    """Before the next attempt: what the server asks for in seconds, or else twice as long each time; those who ask for
    different things at the same time do not come back together.

    >>> pause_s(0, "7", ""), pause_s(0, "99999", ""), 0.25 <= pause_s(0, "Wed, 21 Oct", "") <= 0.5
    (7.0, 60.0, True)
    """
    if asked_to_wait.isascii() and asked_to_wait.isdigit():
        return min(float(asked_to_wait[:9]), MAX_PAUSE_S)
    return min(FIRST_PAUSE_S * 2**attempt, MAX_PAUSE_S) * random.Random(f"{attempt}/{content}").uniform(0.5, 1.0)


def numbers_of(reply: object, key: str, number: int) -> list[float]:
    """The reply's scores. Raises CannotJudge unless they are `number` finite numbers, below 1e300."""
    values = reply.get(key) if isinstance(reply, dict) else None
    if not isinstance(values, list) or len(values) != number:
        raise CannotJudge(FailureKind.MISSHAPED, f"the server's reply has no list {key!r} of {number} numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise CannotJudge(FailureKind.MISSHAPED, f"the server's {key} hold {value!r:.100}, which is no number")
    return [float(value) for value in values]
