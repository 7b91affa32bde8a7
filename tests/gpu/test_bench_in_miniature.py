"""The measurement of a GPU runs as a whole, in miniature, where there is none."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu import bench
from tests.gpu._device import CPU


def figures(found: object) -> Iterator[float]:
    """Every number in what JSON holds."""
    if isinstance(found, dict | list):
        for value in found.values() if isinstance(found, dict) else found:
            yield from figures(value)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield found


def test_every_part_is_measured_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--tiny", "--json", str(tmp_path / "gpu.json")])
    bench.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["command"] == "python -m tests.gpu.bench --tiny"
    assert {"git", "seed", "device", "torch", "matmul_tflops"} <= found.keys()
    assert (len(found["head"]), len(found["packed"]), len(found["step"])) == (1, 2, 1)
    assert None not in [*found["head"][0].values(), *found["packed"][0].values(), *found["step"]]
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures(found))
    assert all(own["packed"]["tokens_per_s"] > 0 and own["padded"]["mfu"] > 0 for own in found["packed"])
    step = found["step"][0]
    assert step["verbs"]["seconds"].keys() == {"look", "credit", "update"}
    assert step["tokens_per_s"] == pytest.approx(step["tokens"] / sum(step["verbs"]["seconds"].values()))
    printed = capsys.readouterr().out
    assert all(title in printed for title in ("log-probs from hidden states", "passes of a model", "a step of"))


def test_what_had_no_room_is_told_as_such(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plan = replace(bench.TINY, packed=bench.TINY.packed[:1], step=())
    found = bench.measured(plan, ("head", "packed"))
    [head], [packed] = found.head, found.packed
    none = replace(
        found,
        head=[replace(head, forward=None, train=None, naive_train=None)],
        packed=[replace(packed, packed=None, padded=None)],
        step=[None],
    )
    bench.show(none, CPU)
    assert capsys.readouterr().out.count(f" {bench.NO_ROOM} ") == 3 * 2 + 2 + 2 * 3 + 1


def test_without_a_gpu_the_real_sizes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench"])
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench.main()
    assert "--tiny" in capsys.readouterr().err
