"""Rollouts on disk: a jsonl to read, a safetensors to replay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from rewards.score import Score
from workers.records import Group, ScoredRollout


def write_rollouts(folder: Path, step: int, groups: Sequence[Group]) -> None:
    """`step_000010.jsonl`: a line a response, for people. `step_000010.safetensors`: the same rows' exact tokens.

    The tensors are flat over all rows; `offset` says where each row's response starts, `prompt_offset` where its
    prompt does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"step_{step:06d}"
    rows = [scored for group in groups for scored in group.rollouts]
    with stem.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
        for scored in rows:
            file.write(json.dumps(_readable(scored), ensure_ascii=False) + "\n")
    rollouts = [scored.rollout for scored in rows]
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
        stem.with_suffix(".safetensors"),
    )


def _readable(scored: ScoredRollout) -> dict[str, object]:
    rollout, judgement = scored.rollout, scored.judgement
    if isinstance(judgement, Score):
        verdict: dict[str, object] = {"score": judgement.total, "parts": dict(judgement.parts)}
    else:
        verdict = {"failure": judgement.kind.value, "reason": judgement.reason}
    return {
        "id": rollout.prompt.id,
        "draw": rollout.draw,
        "sample": rollout.sample,
        "prompt": [{"role": message.role, "content": message.content} for message in rollout.prompt.messages],
        "response": rollout.text,
        "answer": rollout.prompt.answer,
        "stop": rollout.stop.value,
        **verdict,
    }


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
