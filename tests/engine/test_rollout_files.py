"""A step's rollouts on disk: the tensors hold every token exactly, the lines are for people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from engine.group_files import JudgedGroup
from engine.rollout_files import FailureList, rollouts_of
from engine.rollout_files import write_rollouts as write_all
from rewards.score import Failure, FailureKind, Score
from workers.records import Group, GroupSummary, Message, Prompt, Rollout, Span, Stop

TIMEOUT = Failure(kind=FailureKind.TIMEOUT, reason="no answer within 10 s")


def rollout(prompt: Prompt, *, draw: int, sample: int, spans: tuple[Span, ...]) -> Rollout:
    length = spans[-1].end
    generator = np.random.default_rng((draw, sample))
    return Rollout(
        prompt=prompt,
        draw=draw,
        sample=sample,
        text=f"größer {draw}/{sample}\nzwei",
        token_ids=generator.integers(0, 2**31, length, dtype=np.int32),
        logprobs=-generator.exponential(size=length).astype(np.float32),
        spans=spans,
        stop=Stop.LENGTH if sample else Stop.END,
    )


def prompt(number: int, *tokens: int) -> Prompt:
    messages = (Message(role="system", content="add"), Message(role="user", content=f"{number}+1="))
    return Prompt(
        id=f"p{number}", messages=messages, token_ids=tokens, answer=str(number + 1), row={"a": number}, from_text=True
    )


def own(end: int, version: int) -> Span:
    return Span(start=0, end=end, sampled=True, version=version)


@pytest.fixture
def groups() -> list[JudgedGroup]:
    first, second = prompt(1, 3, 4, 5), prompt(2, 6)
    tool = (own(2, 7), Span(start=2, end=5, sampled=False, version=7), Span(start=5, end=6, sampled=True, version=8))
    score = Score(total=1.25, parts={"correct": 1.0, "format": 0.25})
    return [
        JudgedGroup(
            group=Group(
                rollouts=(
                    rollout(first, draw=7, sample=0, spans=(own(4, 7),)),
                    rollout(first, draw=7, sample=1, spans=tool),
                ),
                greedy=rollout(first, draw=7, sample=2, spans=(own(3, 7),)),
                prompt_text="",
            ),
            judgements=(score, TIMEOUT, score),
            dropped=None,
        ),
        JudgedGroup(
            group=Group(
                rollouts=(rollout(second, draw=12, sample=0, spans=(own(1, 8),)),), greedy=None, prompt_text=""
            ),
            judgements=(Score(total=0.0, parts={}),),
            dropped=None,
        ),
    ]


def write_rollouts(folder: Path, step: int, groups: list[JudgedGroup]) -> None:
    write_all(folder, step, groups, advantages={})


def sampled(groups: list[JudgedGroup]) -> list[Rollout]:
    return [rollout for judged in groups for rollout in judged.group.responses]


def lines(folder: Path, step: int) -> list[dict[str, object]]:
    text = rollouts_of(folder, step).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_token_comes_back_bit_for_bit(tmp_path: Path, groups: list[JudgedGroup]) -> None:
    write_rollouts(tmp_path / "not" / "yet", 10, groups)
    saved = load_file(tmp_path / "not" / "yet" / "rollouts" / "step_000010.safetensors")
    rollouts = sampled(groups)
    assert len(saved["offset"]) == len(saved["prompt_offset"]) == len(rollouts) + 1
    for index, rollout in enumerate(rollouts):
        row = slice(saved["offset"][index], saved["offset"][index + 1])
        question = slice(saved["prompt_offset"][index], saved["prompt_offset"][index + 1])
        assert (saved["draw"][index], saved["sample"][index]) == (rollout.draw, rollout.sample)
        for name in ("token_ids", "logprobs"):
            written, held = saved[name][row], getattr(rollout, name)
            assert written.dtype == held.dtype and written.tobytes() == held.tobytes()
        assert saved["prompt_token_ids"][question].tolist() == list(rollout.prompt.token_ids)
        assert saved["action_mask"].dtype == bool
        assert saved["action_mask"][row].tolist() == rollout.action_mask().tolist()
        versions = [span.version for span in rollout.spans for _ in range(span.start, span.end)]
        assert saved["version"][row].tolist() == versions


def test_tool_tokens_are_marked_and_every_token_has_its_version(tmp_path: Path, groups: list[JudgedGroup]) -> None:
    write_rollouts(tmp_path, 1, groups)
    saved = load_file(tmp_path / "rollouts" / "step_000001.safetensors")
    assert saved["action_mask"].tolist() == [True] * 4 + [True, True, False, False, False, True] + [True] * 4
    assert saved["version"].tolist() == [7] * 4 + [7, 7, 7, 7, 7, 8] + [7] * 3 + [8]


def test_a_line_says_what_was_asked_and_answered_and_how_it_was_judged(
    tmp_path: Path, groups: list[JudgedGroup]
) -> None:
    write_rollouts(tmp_path, 3, groups)
    first, _, _, last = lines(tmp_path, 3)
    assert first == {
        "id": "p1",
        "draw": 7,
        "sample": 0,
        "greedy": False,
        "dropped": None,
        "data_source": None,
        "prompt": [{"role": "system", "content": "add"}, {"role": "user", "content": "1+1="}],
        "response": "größer 7/0\nzwei",
        "answer": "2",
        "score": 1.25,
        "parts": {"correct": 1.0, "format": 0.25},
        "advantage": None,
        "stop": "end",
        "tokens": 4,
        "versions": [[0, 4, 7]],
    }
    assert last["score"] == 0.0
    assert "größer" in (tmp_path / "rollouts" / "step_000003.jsonl").read_text(encoding="utf-8")


def test_a_failure_is_shown_as_a_failure_and_has_no_score(tmp_path: Path, groups: list[JudgedGroup]) -> None:
    write_rollouts(tmp_path, 3, groups)
    failed = lines(tmp_path, 3)[1]
    assert (failed["failure"], failed["reason"]) == ("timeout", "no answer within 10 s")
    assert "score" not in failed and "parts" not in failed


def test_lines_and_tensor_rows_are_the_same_rows(tmp_path: Path, groups: list[JudgedGroup]) -> None:
    write_rollouts(tmp_path, 3, groups)
    saved = load_file(tmp_path / "rollouts" / "step_000003.safetensors")
    told = [(line["draw"], line["sample"]) for line in lines(tmp_path, 3)]
    assert told == list(zip(saved["draw"].tolist(), saved["sample"].tolist(), strict=True))


def test_neither_a_greedy_response_nor_a_group_that_was_passed_over_is_learned_from(
    tmp_path: Path, groups: list[JudgedGroup]
) -> None:
    write_rollouts(tmp_path, 3, [groups[0], replace(groups[1], dropped="all_right")])
    assert [line["dropped"] for line in lines(tmp_path, 3)] == [None, None, None, "all_right"]
    saved = load_file(tmp_path / "rollouts" / "step_000003.safetensors")
    assert saved["learned_from"].tolist() == [True, True, False, False]


def test_a_step_written_again_after_a_resume_replaces_the_first(tmp_path: Path, groups: list[JudgedGroup]) -> None:
    write_rollouts(tmp_path, 3, groups)
    write_rollouts(tmp_path, 3, groups[1:])
    assert [line["draw"] for line in lines(tmp_path, 3)] == [12]
    assert load_file(tmp_path / "rollouts" / "step_000003.safetensors")["draw"].tolist() == [12]


def test_a_greedy_response_is_marked_and_stands_behind_its_siblings(tmp_path: Path, groups: list[JudgedGroup]) -> None:
    write_rollouts(tmp_path, 3, groups)
    assert [(line["draw"], line["greedy"]) for line in lines(tmp_path, 3)] == [
        (7, False), (7, False), (7, True), (12, False),
    ]  # fmt: skip


def test_a_tools_tokens_are_in_no_range_of_versions_and_advantages_are_by_name(
    tmp_path: Path, groups: list[JudgedGroup]
) -> None:
    write_all(tmp_path, 3, groups, advantages={(7, 0): 0.5, (12, 0): -1.25})
    told = lines(tmp_path, 3)
    assert told[1]["versions"] == [[0, 2, 7], [5, 6, 8]] and told[1]["tokens"] == 6
    assert [line["advantage"] for line in told] == [0.5, None, None, -1.25]


HOSTILE = ["\ud800", "a\udfffb", "\x00\x1b[2J", "line\u2028end\u2029\x85\x0b\x0c\x1c.", '"\\', "\\ud800", "😀"]


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_model_writes_comes_back_from_one_line_of_utf8(
    tmp_path: Path, groups: list[JudgedGroup], text: str
) -> None:
    [own] = groups[1].group.rollouts
    group = replace(groups[1].group, rollouts=(replace(own, text=text), own))
    judgements = (Score(total=1.0, parts={text: 1.0}), Score(total=0.0, parts={}))
    write_rollouts(tmp_path, 3, [JudgedGroup(group=group, judgements=judgements, dropped=None)])
    raw = rollouts_of(tmp_path, 3).read_bytes().decode("utf-8")
    first, second = raw.splitlines()  # which also splits at ends of lines that JSON does not know
    assert json.loads(first)["response"] == text and json.loads(first)["parts"] == {text: 1.0}
    assert json.loads(second)["response"] == own.text


# ----------------------------------------------------------------------------- failures


def summary_of(judged: JudgedGroup) -> GroupSummary:
    return judged.group.summary(judged.judgements, judging_s=0.0)


def failures(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_failures_are_listed_with_their_sample_the_greedy_one_last(tmp_path: Path, groups: list[JudgedGroup]) -> None:
    crash = Failure(kind=FailureKind.CRASH, reason="\ud800" + "x" * 10_000)
    judged = replace(groups[0], judgements=(*groups[0].judgements[:2], crash))
    FailureList(tmp_path / "failures.jsonl", after_step=0).add(4, summary_of(judged))
    first, last = failures(tmp_path / "failures.jsonl")
    assert first == {
        "step": 4, "id": "p1", "draw": 7, "sample": 1, "kind": "timeout", "reason": "no answer within 10 s",
    }  # fmt: skip
    assert (last["sample"], last["kind"]) == (2, "crash") and len(str(last["reason"])) == 2000


def test_a_step_that_is_done_again_lists_its_failures_once(tmp_path: Path, groups: list[JudgedGroup]) -> None:
    path = tmp_path / "failures.jsonl"
    summary = summary_of(groups[0])
    first = FailureList(path, after_step=0)
    for step in (1, 2, 3):
        first.add(step, summary)
    again = FailureList(path, after_step=2)
    assert [row["step"] for row in failures(path)] == [1, 2]
    again.add(3, summary)
    assert [row["step"] for row in failures(path)] == [1, 2, 3]


def test_the_list_does_not_grow_without_end(
    tmp_path: Path, groups: list[JudgedGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.rollout_files.MOST_FAILURE_BYTES", 1000)
    path = tmp_path / "failures.jsonl"
    own = FailureList(path, after_step=0)
    for step in range(100):
        own.add(step, summary_of(groups[0]))
    assert 800 < path.stat().st_size <= 1000 and len(failures(path)) > 5
