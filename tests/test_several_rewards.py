"""A run that several functions judge: of one's own and of another system, some rows each, weighed and only shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import run_main

NATIVE = '''
def digits(response: str, answer: str, level: int, **row: object) -> dict[str, float]:
    """Every row: a response in digits, as long as its answer."""
    return {"numeric": float(response.strip().isdigit()), "length": -0.5 * abs(len(response) - len(answer)) * level}


def even(responses, answers):
    return [float(len(response) % 2 == 0) for response in responses]
'''
VERL = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """As verl's users write it; the ground truth is a number in their rows."""
    if data_source != "sums":
        raise NotImplementedError(f"Reward function is not implemented for {data_source=}")
    acc = solution_str.strip() == str(ground_truth)
    return {"score": 1.0 if acc else -0.25, "acc": acc, "pred": solution_str}
'''
SMALL = (
    "rollout.engine=hf",
    "rollout.prompts_per_step=4",
    "rollout.responses_per_prompt=4",
    "run.steps=2",
    "run.keep_rollouts_every_steps=1",
    "run.tensorboard=false",
    "evaluation.prompts=0",
    "data=files",
    "data.held_out=0",
)
PARTS_OF_ALL = {"digits", "digits/numeric", "digits/length"}


def rows() -> list[dict[str, Any]]:
    """Half of them are sums, which the verl function judges; the others `exact` judges."""
    return [
        {
            "prompt": f"{n + 10}+{n + 20}=",
            "answer": 2 * n + 30,
            "level": n % 3,
            "data_source": "sums" if n % 2 else "others",
        }
        for n in range(8)
    ]


def expected(row: dict[str, Any], response: str) -> tuple[float, dict[str, float]]:
    """The reward and what it is made of, as the settings of the test say."""
    answer = str(row["answer"])
    numeric, length = float(response.strip().isdigit()), -0.5 * abs(len(response) - len(answer)) * row["level"]
    parts = {"digits": numeric + length, "digits/numeric": numeric, "digits/length": length}
    right = response.strip() == answer
    if row["data_source"] == "sums":
        score = 1.0 if right else -0.25
        parts |= {"verl": score, "verl/compute_score": score, "verl/acc": float(right)}
        return 0.5 * parts["digits"] + 2.0 * score, parts
    parts |= {"exact": float(response == answer), "shown": float(len(response) % 2 == 0)}
    return 0.5 * parts["digits"] + 1.0 * parts["exact"], parts


def test_each_row_is_judged_by_its_functions_and_their_weighted_sum_trains(tmp_path: Path) -> None:
    (tmp_path / "native.py").write_text(NATIVE)
    (tmp_path / "theirs.py").write_text(VERL)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows()))
    functions = {
        "verl": ("theirs.py:compute_score", 2.0, "sums"),
        "exact": ("rewards.number:exact", 1.0, "others"),
        "shown": ("native.py:even", 0.0, "others"),
    }
    settings = [f"reward.function={tmp_path / 'native.py'}:digits", "reward.function_weight=0.5"]
    for name, (function, weight, source) in functions.items():
        place = function if function.startswith("rewards.") else f"{tmp_path / function}"
        key = f"reward.functions.{name}"
        settings += [f"{key}.function={place}", f"{key}.weight={weight}", f"{key}.data_sources=[{source}]"]

    run = run_main(*SMALL, f"data.path={tmp_path / 'rows.jsonl'}", *settings, folder=tmp_path, name="several")

    assert run.exit_code == 0, run.output
    assert f"reward {tmp_path / 'theirs.py'}:compute_score (verl): an empty response scores -0.25" in run.output
    by_prompt = {row["prompt"]: row for row in rows()}
    assert len(run.steps) == 2
    for step in run.steps:
        kept = (run.folder / "rollouts" / f"step_{step['step']:06d}.jsonl").read_text().splitlines()
        judged = [json.loads(line) for line in kept]
        assert len(judged) == 16
        wanted = [expected(by_prompt[one["prompt"][-1]["content"]], one["response"]) for one in judged]
        for one, (score, parts) in zip(judged, wanted, strict=True):
            assert one["parts"] == pytest.approx(parts) and one["score"] == pytest.approx(score), one
        for name in {name for _, parts in wanted for name in parts}:
            own = [parts[name] for _, parts in wanted if name in parts]
            assert step[f"reward/{name}"] == pytest.approx(np.mean(own)), name
        assert step["reward/mean"] == pytest.approx(np.mean([score for score, _ in wanted]))
        assert step["reward/unjudged_share"] == 0
    said = {name for _, parts in wanted for name in parts}
    assert said == PARTS_OF_ALL | {"verl", "verl/compute_score", "verl/acc", "exact", "shown"}
    log = (run.folder / "logs" / "reward_0.log").read_text()
    assert ":compute_score (verl): an empty response scores" in log
