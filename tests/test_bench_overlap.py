"""The sleeping models of the benches do what real ones do, so that what is measured around them means something."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from tests.bench._stub_models import Plan, StubEngine
from tests.bench._timeline import LEFT, WIDTH, Bar, Panel, svg
from tests.bench.overlap import TRACES, lengths_of
from tests.bench.step import Measured, timeline
from workers.records import Sampling, Span, WeightManifest
from workers.rollout_worker import CompletionRequest

PLAN = Plan(decode_step_s=0.0, update_s=0.0, swap_s=0.0, lengths=((3, 1), (5, 2)))


def request(draw: int, sample: int) -> CompletionRequest:
    sampling = Sampling(temperature=1.0, max_tokens=99)
    return CompletionRequest(id=f"{draw}/{sample}/0", token_ids=(1,), seed=0, sampling=sampling)


def engine_of(plan: Plan = PLAN) -> StubEngine:
    engine = StubEngine("engine")
    engine.begin(plan)
    return engine


def test_a_stub_writes_each_response_as_long_as_is_planned_and_says_which_weights_wrote_it() -> None:
    engine = engine_of()
    for draw, sample in ((0, 0), (1, 0), (2, 1)):  # the plan of draw 0 again for draw 2
        engine.add(request(draw, sample))
    ended = {}
    for step in range(1, 6):
        if step == 3:
            engine.load_weights(WeightManifest(version=1, path="", entries=(), checksum=""))
        ended |= {key: (step, completion) for key, completion in engine.step()}
    assert {key: step for key, (step, _) in ended.items()} == {"2/1/0": 1, "0/0/0": 3, "1/0/0": 5}
    assert ended["1/0/0"][1].spans == (
        Span(start=0, end=2, sampled=True, version=0),
        Span(start=2, end=5, sampled=True, version=1),
    )
    told = engine.told()
    assert told.decoded_tokens == 3 + 5 + 1 and len(told.pauses_s) == 1 and len(told.swaps) == 1
    assert [running for _, _, running in told.steps] == [3, 2, 2, 1, 1]


def test_new_weights_for_an_idle_stub_are_no_pause() -> None:
    engine = engine_of()
    engine.load_weights(WeightManifest(version=1, path="", entries=(), checksum=""))
    engine.add(request(0, 1))
    engine.step()
    assert engine.told().pauses_s == ()


def test_a_stub_forgets_what_is_cut_off_and_counts_it() -> None:
    engine = engine_of()
    engine.add(request(1, 0))
    engine.step()
    engine.step()
    assert engine.abort("1/0/0") == 2 and not engine.is_busy()


def test_a_trace_gives_every_response_of_a_run_a_length_of_its_own() -> None:
    for trace, clipped in TRACES.items():
        flat = np.array(lengths_of(trace, draws=100)).ravel()
        assert len(flat) == 400 and flat.max() == (64 if clipped is None else 128)
        if clipped is not None:
            assert abs(float((flat == 128).mean()) - clipped) < 0.01


def test_a_timeline_has_a_row_a_worker_and_bars_where_they_worked() -> None:
    bars = (
        Bar(row="engine <0>", what="decode", start_s=0.0, end_s=1.0, share=0.5),
        Bar(row="trainer", what="update", start_s=1.0, end_s=9.0),
    )
    root = ElementTree.fromstring(svg([Panel(title="a & b", bars=bars, marks_s=(1.0,))], seconds=2.0))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert texts == ["a & b", "engine <0>", "trainer", "step 1"]
    own = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    assert [rect.find(f"{space}title").text for rect in own] == ["decode", "update"]
    decode, update = own
    assert float(decode.get("width")) == float(update.get("width")), "what is out of the picture is cut off"
    assert float(decode.get("height")) * 2 == float(update.get("height"))


def test_a_mean_step_is_drawn_phase_behind_phase_beside_that_of_another_version() -> None:
    def measured(git: str, generate_s: float, update_s: float) -> Measured:
        return Measured(
            case="nano",
            command="",
            git=git,
            config="",
            seed=0,
            steps=1,
            step_s=generate_s + update_s,
            phase_s={"generate": generate_s, "update": update_s},
            score_s=0.0,
            tokens_per_s=1.0,
        )

    root = ElementTree.fromstring(timeline([measured("old", 3.0, 1.0)], [measured("new", 1.0, 0.5)]))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert texts == ["nano: 4 s before (old), 1.5 s now (new)", "before", "now"]
    bars = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    assert [bar.find(f"{space}title").text for bar in bars] == ["generate", "update"] * 2
    whole = WIDTH - LEFT
    ends = [(float(bar.get("x")) - LEFT + float(bar.get("width"))) / whole for bar in bars]
    assert ends == pytest.approx([0.75, 1.0, 0.25, 0.375], abs=1e-3)
