"""Measurements beside others are fair: the same tokens, the same packages, and no credit for what is another's."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench._forced_lengths import forced, lognormal
from tests.bench.faults import Kills, merged_kills, told_kills
from tests.bench.trl import Plan, Step, compared
from workers.records import Message, Prompt, Sampling
from workers.rollout_worker import CompletionRequest

ROOT = Path(__file__).parents[1]
PROMPT = Prompt(
    id="one", messages=(Message(role="user", content="1+1="),), token_ids=(3, 7), answer="2", row={}, from_text=True
)


def pins(path: str) -> set[str]:
    return {line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")}


def test_a_response_is_as_long_as_is_written_for_its_draw_and_sample():
    sampling = Sampling(temperature=1.0, max_tokens=99)
    request = CompletionRequest(id="1/2/140000000", token_ids=(5, 6), seed=3, sampling=sampling)
    lengths = [[10, 11, 12], [20, 21, 22]]
    assert forced(request, lengths) == replace(request, sampling=Sampling(temperature=1.0, max_tokens=22))


@pytest.mark.parametrize(("clipped", "longest"), [(0.02, 1), (0.20, 6)])
def test_every_step_of_a_trace_has_the_same_lengths_in_another_order(clipped, longest):
    one, other = (lognormal(32, sigma=0.8, clipped=clipped, most=128, seed=seed) for seed in (0, 1))
    assert one != other
    assert sorted(one) == sorted(other)
    assert one.count(128) == longest


def test_trl_computes_with_the_packages_that_ours_computes_with():
    of_trl, ours = pins("tests/bench/trl-requirements.txt"), pins("requirements/cpu.txt")
    assert {pin.split("==")[0] for pin in of_trl - ours} == {"trl"}


def test_what_vllm_is_faster_at_is_not_ours():
    plan = Plan(traces=("", "uniform"), lengths=((4,) * 8, (4,) * 8), prompts=(PROMPT,), config=None)
    warm_up = Step(trace="", seconds=900.0, generate_s=800.0)
    ours = [warm_up, Step(trace="uniform", seconds=10.0, generate_s=4.0)]
    trl = [warm_up, Step(trace="uniform", seconds=40.0, generate_s=28.0)]
    found = compared("uniform", ours, trl, plan)
    assert (found.ratio, found.generate_ratio, found.train_ratio) == (4.0, 7.0, 2.0)
    assert found.ratio_with_our_generation == 1.6
    assert (found.ours_tokens_per_s, found.trl_tokens_per_s) == (3.2, 0.8)


def test_slices_of_kills_add_up_as_they_come_from_a_file():
    one = Kills(engine="hf", trials=2, witnessed=2, by_point=Counter({"driver/save/end": 2}), detect_s=[0.5, 1.5])
    other = Kills(engine="hf", trials=1, witnessed=1, by_point=Counter({"driver/save/end": 1}), detect_s=[2.5])
    slices = json.loads(json.dumps([told_kills(one), told_kills(other), told_kills(Kills(engine="vllm"))]))
    added, of_vllm = merged_kills(slices)
    assert (added.trials, added.witnessed, added.by_point) == (3, 3, Counter({"driver/save/end": 3}))
    assert told_kills(added)["detect_p50_s"] == 1.5
    assert of_vllm == Kills(engine="vllm")
