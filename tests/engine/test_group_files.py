"""Judged groups come back from their files as they were: every token, every log-prob's bits, every judgement."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from engine.group_files import JudgedGroup, NotGroups, read_groups, write_groups
from engine.rollout_files import read_rollouts, write_rollouts
from rewards.score import Failure, FailureKind, Judgement, Score
from workers.records import Group, Message, Prompt, Rollout, Span, Stop, ToolCall

INT32 = st.integers(0, 2**31 - 1)
ONE_HALF = st.sampled_from(["\ud800", "\udbff", "\udc00"])
"""Of a surrogate pair; with a letter between two of them they make no character."""
TEXTS = st.lists(st.text(max_size=4) | st.sampled_from(["\x85", "\u2028", "\\ud800"]) | ONE_HALF, max_size=4).map(
    "a".join
)
NUMBERS = st.floats(allow_nan=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
ROWS = st.dictionaries(TEXTS, JSON_VALUES, max_size=3)
CALLS = st.lists(st.builds(ToolCall, name=TEXTS, arguments=ROWS), max_size=2).map(tuple)
MESSAGES = st.builds(Message, role=TEXTS, content=TEXTS, tool_calls=CALLS)
PROMPTS = st.builds(
    Prompt,
    id=TEXTS,
    messages=st.lists(MESSAGES, max_size=2).map(tuple),
    token_ids=st.lists(INT32, max_size=3).map(tuple),
    answer=TEXTS,
    row=ROWS,
    from_text=st.booleans(),
)
JUDGEMENTS = st.builds(Score, total=NUMBERS, parts=st.dictionaries(TEXTS, NUMBERS, max_size=2)) | st.builds(
    Failure, kind=st.sampled_from(FailureKind), reason=TEXTS
)


@st.composite
def rollouts(draw: st.DrawFn, prompt: Prompt, number: int, sample: int) -> Rollout:
    """Its log-probs are any bits, also those of a NaN."""
    bits = draw(st.lists(st.integers(0, 2**32 - 1), max_size=5))
    length = len(bits)
    ends = [*sorted(draw(st.sets(st.integers(1, max(1, length)), max_size=2)) - {length}), length] if length else []
    return Rollout(
        prompt=prompt,
        draw=number,
        sample=sample,
        text=draw(TEXTS),
        token_ids=np.array(draw(st.lists(INT32, min_size=length, max_size=length)), dtype=np.int32),
        logprobs=np.array(bits, dtype=np.uint32).view(np.float32),
        spans=tuple(
            Span(start=start, end=end, sampled=draw(st.booleans()), version=draw(st.integers(0, 2**40)))
            for start, end in zip([0, *ends], ends, strict=False)
        ),
        stop=draw(st.sampled_from(Stop)),
    )


@st.composite
def judged_groups(draw: st.DrawFn, number: int) -> JudgedGroup:
    prompt, siblings = draw(PROMPTS), draw(st.integers(1, 3))
    group = Group(
        rollouts=tuple(draw(rollouts(prompt, number, sample)) for sample in range(siblings)),
        greedy=draw(st.none() | rollouts(prompt, number, siblings)),
        prompt_text=draw(TEXTS),
    )
    return JudgedGroup(
        group=group,
        judgements=tuple(draw(JUDGEMENTS) for _ in group.responses),
        dropped=draw(st.none() | TEXTS),
    )


@st.composite
def steps(draw: st.DrawFn) -> list[JudgedGroup]:
    numbers = draw(st.lists(st.integers(0, 2**40), max_size=3, unique=True))
    return [draw(judged_groups(number)) for number in numbers]


def facts(judged: JudgedGroup) -> tuple[object, ...]:
    """All of it, in a form that can be compared: types too, and log-probs by their bits."""
    group = judged.group
    responses = [
        (own.draw, own.sample, own.text, own.spans, own.stop, own.token_ids.dtype, own.token_ids.tobytes(),
         own.logprobs.dtype, own.logprobs.tobytes(), own.prompt is group.prompt)
        for own in group.responses
    ]  # fmt: skip
    told = (group.prompt, group.prompt_text, responses, judged.judgements, judged.dropped)
    return (group.greedy is None, repr(told), told)


@settings(max_examples=100, deadline=None)
@given(groups=steps())
def test_what_is_written_comes_back_exactly(groups: list[JudgedGroup]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "not" / "yet" / "some.groups"
        write_groups(path, groups, advantages={})
        assert list(map(facts, read_groups(path))) == list(map(facts, groups))
        assert {file.name for file in path.parent.iterdir()} == {"some.groups.jsonl", "some.groups.safetensors"}


def one(text: str = "46", judgement: Judgement | None = None, row: dict[str, object] | None = None) -> JudgedGroup:
    prompt = Prompt(id="p", messages=(), token_ids=(3, 4), answer="46", row=row or {}, from_text=True)
    rollout = Rollout(
        prompt=prompt,
        draw=7,
        sample=0,
        text=text,
        token_ids=np.array([5, 6], dtype=np.int32),
        logprobs=np.array([-0.5, -0.25], dtype=np.float32),
        spans=(Span(start=0, end=2, sampled=True, version=3),),
        stop=Stop.END,
    )
    group = Group(rollouts=(rollout,), greedy=None, prompt_text="3 4")
    return JudgedGroup(group=group, judgements=(judgement or Score(total=1.0, parts={"own": 1.0}),), dropped=None)


def test_a_step_of_a_run_is_read_by_its_number(tmp_path: Path) -> None:
    write_rollouts(tmp_path, 3, [one("three")], advantages={(7, 0): 0.5})
    write_rollouts(tmp_path, 4, [one("four")], advantages={})
    assert [facts(judged) for judged in read_rollouts(tmp_path, 3)] == [facts(one("three"))]


def test_a_value_that_json_does_not_know_is_told_and_does_not_end_a_run(tmp_path: Path) -> None:
    row = {"asked": date(2026, 1, 2), "pair": ("a", {1: b"b"}), "count": 3}
    write_groups(tmp_path / "own", [one(row=row)], advantages={})
    [read] = read_groups(tmp_path / "own")
    assert read.group.prompt.row == {"asked": "datetime.date(2026, 1, 2)", "pair": ["a", {"1": "b'b'"}], "count": 3}


def test_two_halves_of_a_pair_come_back_as_the_character_that_they_make(tmp_path: Path) -> None:
    write_groups(tmp_path / "own", [one("\ud83d\ude00")], advantages={})
    assert read_groups(tmp_path / "own")[0].group.rollouts[0].text == "😀"


class Killed(BaseException):
    """Nothing that runs after it is meant to."""


def test_whenever_a_writer_is_killed_the_files_are_of_one_time_or_said_to_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of the calls that change a file on the disk, over an earlier pair."""
    path, calls = tmp_path / "own", 0

    def counted(change: Callable[..., object], *, last: int) -> Callable[..., object]:
        def own(*arguments: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            if calls == last:
                raise Killed
            return change(*arguments, **more)

        return own

    read = []
    for last in range(1, 7):
        write_groups(path, [one("before")], advantages={})
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr("engine.group_files.save_file", counted(save_file, last=last))
            for name in ("write_bytes", "unlink", "replace"):
                patch.setattr(Path, name, counted(getattr(Path, name), last=last))
            with suppress(Killed):
                write_groups(path, [one("after")], advantages={})
        try:
            read.append(read_groups(path)[0].group.rollouts[0].text)
        except NotGroups as error:
            assert "own.jsonl is not there" in str(error)
            read.append("none")
    assert read == ["before", "before", "before", "none", "none", "after"]


def _drop_a_line(readable: Path, exact: Path) -> None:
    readable.write_bytes(b"".join(readable.read_bytes().splitlines(keepends=True)[1:]))


def _cut_the_tensors_short(readable: Path, exact: Path) -> None:
    exact.write_bytes(exact.read_bytes()[:-8])


def _write_no_json(readable: Path, exact: Path) -> None:
    readable.write_text("{")


def _forget_a_field(readable: Path, exact: Path) -> None:
    line = json.loads(readable.read_text())
    del line["stop"]
    readable.write_text(json.dumps(line))


def _forget_the_asked(readable: Path, exact: Path) -> None:
    """As an earlier version wrote them."""
    save_file({name: held for name, held in load_file(exact).items() if name != "asked"}, exact)


def _lose_the_tensors(readable: Path, exact: Path) -> None:
    exact.unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_drop_a_line, "are not of the same responses"),
        (_cut_the_tensors_short, "are not what this version writes"),
        (_write_no_json, "are not what this version writes"),
        (_forget_a_field, "'stop'"),
        (_forget_the_asked, "'asked'"),
        (_lose_the_tensors, "own.safetensors is not there"),
    ],
)
def test_other_files_are_refused_with_what_is_wrong(
    tmp_path: Path, damage: Callable[[Path, Path], None], told: str
) -> None:
    write_groups(tmp_path / "own", [one()], advantages={})
    damage(tmp_path / "own.jsonl", tmp_path / "own.safetensors")
    with pytest.raises(NotGroups, match=told):
        read_groups(tmp_path / "own")
