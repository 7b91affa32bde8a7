"""Rollouts on disk: a jsonl to read, a safetensors to replay; and the list of responses that were not judged.

`rollouts/step_000010.jsonl` has a line for each response that was sampled for step 10: those it learned from, a group's
greedy one behind its siblings, and behind them all the groups that dynamic sampling passed over. Each is an object of

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
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from rewards.score import Judgement, Score
from rewards.spec import ROUTING_COLUMN
from workers.records import Group, GroupSummary

Name = tuple[int, int]
"""Of a response: draw and sample."""

LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Characters that JSON leaves as they are and some readers take for the end of a line."""
MOST_FAILURE_BYTES = 16 * 2**20
MOST_REASON_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedGroup:
    """A group of a step, and what the reward said of each of its responses, the greedy one last."""

    group: Group
    judgements: tuple[Judgement, ...]
    dropped: str | None
    """Why the step did not learn from it."""


def write_rollouts(
    run_folder: Path,
    step: int,
    groups: Sequence[JudgedGroup],
    *,
    advantages: Mapping[Name, float],
) -> None:
    """`step_000010.jsonl`: a line a response, for people. `step_000010.safetensors`: the exact tokens of those that
    were learned from, which are the lines with neither `greedy` nor `dropped`, in the same order.

    The tensors are flat over all rows; `offset` says where each row's response starts, `prompt_offset` where its
    prompt does.
    """
    readable = rollouts_of(run_folder, step)
    readable.parent.mkdir(parents=True, exist_ok=True)
    readable.write_bytes(b"".join(as_line(line) for judged in groups for line in _lines(judged, advantages)))
    rollouts = [rollout for judged in groups if judged.dropped is None for rollout in judged.group.rollouts]
    save_file(
        {
            "draw": np.array([rollout.draw for rollout in rollouts], dtype=np.int64),
            "sample": np.array([rollout.sample for rollout in rollouts], dtype=np.int64),
            "offset": _offsets([len(rollout.token_ids) for rollout in rollouts]),
            "token_ids": np.concatenate([rollout.token_ids for rollout in rollouts]),
            "logprobs": np.concatenate([rollout.logprobs for rollout in rollouts]),
            "action_mask": np.concatenate([rollout.action_mask() for rollout in rollouts]),
            "version": np.concatenate([rollout.versions() for rollout in rollouts]),
            "prompt_offset": _offsets([len(rollout.prompt.token_ids) for rollout in rollouts]),
            "prompt_token_ids": np.concatenate(
                [np.array(rollout.prompt.token_ids, dtype=np.int32) for rollout in rollouts]
            ),
        },
        readable.with_suffix(".safetensors"),
    )


def rollouts_of(run_folder: Path, step: int) -> Path:
    """Where a run keeps the responses of a step (from 1), if it does."""
    return run_folder / "rollouts" / f"step_{step:06d}.jsonl"


class FailureList:
    """`failures.jsonl`: a line for each response that was not judged, `{"step", "id", "draw", "sample", "kind",
    "reason"}`, until the file is large; further ones are only counted, in the metrics `reward_failures/<kind>`."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """What an earlier run listed of later steps is forgotten: they are done again."""
        self._path = path
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(line for line in lines if json.loads(line)["step"] <= after_step))

    def add(self, step: int, summary: GroupSummary) -> None:
        """Those of one group; `step` is from 1."""
        with self._path.open("ab") as file:
            for sample, failure in summary.failures().items():
                line = as_line(
                    {
                        "step": step,
                        "id": summary.prompt_id,
                        "draw": summary.draw,
                        "sample": sample,
                        "kind": failure.kind.value,
                        "reason": failure.reason[:MOST_REASON_CHARACTERS],
                    }
                )
                if file.tell() + len(line) <= MOST_FAILURE_BYTES:
                    file.write(line)


def as_line(row: Mapping[str, object]) -> bytes:
    """One JSON object on one line of UTF-8, whatever its texts hold."""
    text = json.dumps(row, ensure_ascii=False).translate(LINE_ENDS)
    # Only half of a surrogate pair cannot be encoded; Python's replacement for it is also JSON's escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _lines(judged: JudgedGroup, advantages: Mapping[Name, float]) -> Iterable[dict[str, object]]:
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


def _verdict(judgement: Judgement) -> dict[str, object]:
    if isinstance(judgement, Score):
        return {"score": judgement.total, "parts": dict(judgement.parts)}
    return {"failure": judgement.kind.value, "reason": judgement.reason}


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
