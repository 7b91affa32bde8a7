"""A group crosses processes in a few arrays, and every bit of it arrives."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from workers.records import Group, Message, Prompt, Rollout, Span, Stop

TEXTS = ("größer\x00", "", "\ud800", "forty-six")
SPANS = (
    ((0, 2, True, 7), (2, 5, False, 7), (5, 6, True, 8)),
    ((0, 1, True, 2**40),),
    (),
    ((0, 3, True, 0),),
)


def rollout(prompt: Prompt, sample: int) -> Rollout:
    generator = np.random.default_rng(sample)
    spans = tuple(Span(start=a, end=b, sampled=c, version=d) for a, b, c, d in SPANS[sample])
    length = spans[-1].end if spans else 0
    return Rollout(
        prompt=prompt, draw=12, sample=sample, text=TEXTS[sample], spans=spans,
        token_ids=generator.integers(0, 2**31, length, dtype=np.int32),
        logprobs=-generator.exponential(size=length).astype(np.float32),
        stop=Stop.LENGTH if sample else Stop.END,
    )  # fmt: skip


@pytest.fixture(params=[False, True], ids=["siblings alone", "with a greedy one"])
def group(request: pytest.FixtureRequest) -> Group:
    prompt = Prompt(
        id="p", messages=(Message(role="user", content="?"),), token_ids=(3, 4), answer="46", row={"a": [1]},
        from_text=True,
    )  # fmt: skip
    own = tuple(rollout(prompt, sample) for sample in range(4))
    return Group(rollouts=own[: 4 - request.param], greedy=own[3] if request.param else None, prompt_text="<|user|>?")


def test_every_bit_of_a_group_arrives(group: Group) -> None:
    arrived = pickle.loads(pickle.dumps(group))
    assert (arrived.prompt_text, arrived.prompt) == (group.prompt_text, group.prompt)
    assert (arrived.greedy is None) == (group.greedy is None) and len(arrived.rollouts) == len(group.rollouts)
    for own, other in zip(group.responses, arrived.responses, strict=True):
        for name in ("prompt", "draw", "sample", "text", "spans", "stop"):
            assert getattr(own, name) == getattr(other, name)
            assert type(getattr(own, name)) is type(getattr(other, name))
        for name in ("token_ids", "logprobs"):
            before, after = getattr(own, name), getattr(other, name)
            assert before.dtype == after.dtype and before.tobytes() == after.tobytes()
        assert all(type(span.sampled) is bool and type(span.start) is int for span in other.spans)


def test_tokens_cross_as_arrays_and_are_not_copied_where_they_arrive(group: Group) -> None:
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(group, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 3
    arrived = pickle.loads(message, buffers=buffers)
    raw = [buffer.raw() for buffer in buffers]
    for own in arrived.responses:
        for array in (own.token_ids, own.logprobs):
            assert not len(array) or any(np.shares_memory(array, np.frombuffer(one, dtype=np.uint8)) for one in raw)


def test_the_prompt_is_one_record_for_all_of_them(group: Group) -> None:
    arrived = pickle.loads(pickle.dumps(group))
    assert len({id(own.prompt) for own in arrived.responses}) == 1
