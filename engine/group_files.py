"""Judged groups in a pair of files that gives them back exactly: a jsonl to read, a safetensors with all the rest.

The jsonl has a line for each response, group after group, a group's greedy one behind its siblings. Each is one
object of

    id            of the prompt
    draw, sample  the response's name: the prompt's place in the run, and which of its responses
    greedy        true for the one without chance, which is compared with and not learned from
    dropped       why dynamic sampling passed over its group; null for one that was kept
    data_source   that column of the prompt's row; null without one
    prompt        its messages, as [{"role", "content"}, ...]
    response      the text that was judged, special tokens left out
    answer        the prompt's reference answer
    score, parts  what the reward said, and what it is made of by name; or instead of both
    failure, reason   the kind of failure, and what went wrong
    advantage     of the response; null for one that is not learned from, and where credit is given token by token
    stop          end: it ended by itself; length: it was cut off
    tokens        of the response
    versions      which weights sampled which tokens, as [[first, end, version], ...]; a tool's tokens are in none

Every line is JSON in UTF-8 on one line whatever a model wrote: half of a surrogate pair is written as an escape.

The safetensors has a row for each line, in the same order; `R` rows, tensors without it are flat over all rows:

    draw, sample [R]                int64, the response's name
    learned_from [R]                bool: neither greedy nor of a group that was passed over
    offset [R + 1]                  where each row's response starts among
    token_ids, logprobs             int32, float32, exactly as sampled
    action_mask, version            bool, int64: what the policy itself wrote, and under which weights
    span_offset [R + 1]             where each row's spans start among
    spans [., 4]                    int64: first, end, whether the policy wrote it, version
    prompt_offset [R + 1]           where each row's prompt starts among
    prompt_token_ids                int32
    asked                           uint8: JSON in UTF-8, a line a group: the rest of its prompt, and its size
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rewards.score import Failure, FailureKind, Judgement, Score, clipped
from rewards.spec import ROUTING_COLUMN
from workers.records import Group, Message, Prompt, Rollout, Span, Stop, ToolCall

Name = tuple[int, int]
"""Of a response: draw and sample."""
Line = dict[str, Any]
Tensors = Mapping[str, np.ndarray]

LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Characters that JSON leaves as they are and some readers take for the end of a line."""


class NotGroups(ValueError):
    """There is no pair of files that `write_groups` wrote: says which, and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedGroup:
    """A group of a step, and what the reward said of each of its responses, the greedy one last."""

    group: Group
    judgements: tuple[Judgement, ...]
    dropped: str | None
    """Why the step did not learn from it."""


def write_groups(path: Path, groups: Sequence[JudgedGroup], *, advantages: Mapping[Name, float]) -> None:
    """`<path>.jsonl` and `<path>.safetensors`; earlier ones are replaced. `advantages`: by name, for people.

    All comes back exactly, but for a value of the data row that JSON does not know (the beginning of its repr does),
    and two halves of a surrogate pair that stand beside each other (the character that they make does).
    """
    readable, exact = _files(path)
    readable.parent.mkdir(parents=True, exist_ok=True)
    lines = b"".join(as_line(line) for judged in groups for line in _lines(judged, advantages))
    half_readable, half_exact = (file.with_name(f"{file.name}.partial") for file in (readable, exact))
    half_readable.write_bytes(lines)
    save_file(_tensors(groups), half_exact)
    # Wherever a process is killed, there are lines only beside the tensors that belong to them.
    readable.unlink(missing_ok=True)
    half_exact.replace(exact)
    half_readable.replace(readable)


def read_groups(path: Path) -> list[JudgedGroup]:
    """What `write_groups` was given. Raises NotGroups."""
    readable, exact = _files(path)
    try:
        lines = [json.loads(line) for line in readable.read_bytes().splitlines()]
        tensors = load_file(exact)
        names = [(line["draw"], line["sample"]) for line in lines]
        if names != list(zip(tensors["draw"].tolist(), tensors["sample"].tolist(), strict=True)):
            raise NotGroups(f"{readable} and {exact} are not of the same responses")
        return list(_groups(lines, tensors))
    except FileNotFoundError as missing:
        raise NotGroups(f"{missing.filename or exact} is not there") from missing
    except NotGroups:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        # The shapes that other bytes, and files of another version, take.
        raise NotGroups(f"{readable} and {exact} are not what this version writes: {error!r}") from error


def as_line(row: Mapping[str, object]) -> bytes:
    """One JSON object on one line of UTF-8, whatever its texts hold."""
    text = json.dumps(row, ensure_ascii=False).translate(LINE_ENDS)
    # Only half of a surrogate pair cannot be encoded; Python's replacement for it is also JSON's escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.jsonl"), path.with_name(f"{path.name}.safetensors")


# ----------------------------------------------------------------------------- writing


def _lines(judged: JudgedGroup, advantages: Mapping[Name, float]) -> Iterator[Line]:
    prompt = judged.group.prompt
    source = prompt.row.get(ROUTING_COLUMN)
    for rollout, judgement in zip(judged.group.responses, judged.judgements, strict=True):
        yield {
            "id": prompt.id,
            "draw": rollout.draw,
            "sample": rollout.sample,
            "greedy": rollout is judged.group.greedy,
            "dropped": judged.dropped,
            "data_source": None if source is None else str(source),
            "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
            "response": rollout.text,
            "answer": prompt.answer,
            **_verdict(judgement),
            "advantage": advantages.get((rollout.draw, rollout.sample)),
            "stop": rollout.stop.value,
            "tokens": len(rollout.token_ids),
            "versions": [[span.start, span.end, span.version] for span in rollout.spans if span.sampled],
        }


def _verdict(judgement: Judgement) -> Line:
    if isinstance(judgement, Score):
        return {"score": judgement.total, "parts": dict(judgement.parts)}
    return {"failure": judgement.kind.value, "reason": judgement.reason}


def _tensors(groups: Sequence[JudgedGroup]) -> dict[str, np.ndarray]:
    rows = [(rollout, judged) for judged in groups for rollout in judged.group.responses]
    rollouts = [rollout for rollout, _ in rows]
    spans = [(own.start, own.end, own.sampled, own.version) for rollout in rollouts for own in rollout.spans]
    return {
        "draw": np.array([rollout.draw for rollout in rollouts], dtype=np.int64),
        "sample": np.array([rollout.sample for rollout in rollouts], dtype=np.int64),
        "learned_from": np.array(
            [judged.dropped is None and rollout is not judged.group.greedy for rollout, judged in rows], dtype=bool
        ),
        "offset": _offsets(len(rollout.token_ids) for rollout in rollouts),
        "token_ids": _flat((rollout.token_ids for rollout in rollouts), np.int32),
        "logprobs": _flat((rollout.logprobs for rollout in rollouts), np.float32),
        "action_mask": _flat((rollout.action_mask() for rollout in rollouts), bool),
        "version": _flat((rollout.versions() for rollout in rollouts), np.int64),
        "span_offset": _offsets(len(rollout.spans) for rollout in rollouts),
        "spans": np.array(spans, dtype=np.int64).reshape(-1, 4),
        "prompt_offset": _offsets(len(rollout.prompt.token_ids) for rollout in rollouts),
        "prompt_token_ids": _flat((np.array(rollout.prompt.token_ids) for rollout in rollouts), np.int32),
        "asked": np.frombuffer(b"".join(as_line(_asked(judged.group)) for judged in groups), dtype=np.uint8),
    }


def _asked(group: Group) -> Line:
    """What the lines of a group do not say of its prompt."""
    prompt = group.prompt
    calls = [[(call.name, _json(call.arguments)) for call in message.tool_calls] for message in prompt.messages]
    return {
        "responses": len(group.responses),
        "prompt_text": group.prompt_text,
        "from_text": prompt.from_text,
        "row": _json(prompt.row),
        "tool_calls": calls,
    }


def _json(value: object) -> object:
    """As JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(part) for part in value]
    return value if value is None or isinstance(value, (str, int, float)) else clipped(value)


def _flat(arrays: Iterable[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *(array.astype(dtype, copy=False) for array in arrays)])


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


# ----------------------------------------------------------------------------- reading


def _groups(lines: Sequence[Line], tensors: Tensors) -> Iterator[JudgedGroup]:
    first = 0
    for asked in map(json.loads, tensors["asked"].tobytes().splitlines()):
        own = range(first, first + asked["responses"])
        first = own.stop
        prompt = _prompt(lines[own.start], asked, _cut(tensors, "prompt_token_ids", "prompt_offset", own.start))
        responses = [_rollout(prompt, lines[row], tensors, row) for row in own]
        greedy = responses.pop() if lines[own[-1]]["greedy"] else None
        yield JudgedGroup(
            group=Group(rollouts=tuple(responses), greedy=greedy, prompt_text=asked["prompt_text"]),
            judgements=tuple(_judgement(lines[row]) for row in own),
            dropped=lines[own.start]["dropped"],
        )
    if first != len(lines):
        raise NotGroups(f"there are {len(lines)} responses, and groups of {first}")


def _prompt(line: Line, asked: Line, token_ids: np.ndarray) -> Prompt:
    messages = (
        Message(
            role=message["role"],
            content=message["content"],
            tool_calls=tuple(ToolCall(name=name, arguments=arguments) for name, arguments in calls),
        )
        for message, calls in zip(line["prompt"], asked["tool_calls"], strict=True)
    )
    return Prompt(
        id=line["id"],
        messages=tuple(messages),
        token_ids=tuple(token_ids.tolist()),
        answer=line["answer"],
        row=asked["row"],
        from_text=asked["from_text"],
    )


def _rollout(prompt: Prompt, line: Line, tensors: Tensors, row: int) -> Rollout:
    return Rollout(
        prompt=prompt,
        draw=line["draw"],
        sample=line["sample"],
        text=line["response"],
        token_ids=_cut(tensors, "token_ids", "offset", row),
        logprobs=_cut(tensors, "logprobs", "offset", row),
        spans=tuple(
            Span(start=start, end=end, sampled=bool(sampled), version=version)
            for start, end, sampled, version in _cut(tensors, "spans", "span_offset", row).tolist()
        ),
        stop=Stop(line["stop"]),
    )


def _judgement(line: Line) -> Judgement:
    if "failure" in line:
        return Failure(kind=FailureKind(line["failure"]), reason=line["reason"])
    return Score(total=line["score"], parts=line["parts"])


def _cut(tensors: Tensors, name: str, offsets: str, row: int) -> np.ndarray:
    """A row of a flat tensor: a view."""
    return tensors[name][tensors[offsets][row] : tensors[offsets][row + 1]]
