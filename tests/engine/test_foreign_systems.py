"""Data and reward functions of other systems, as their users have them, from the file on disk to the score.

Each function says what it was called with (`saw`); that is compared with what its own system hands over.
"""

from __future__ import annotations

import ast
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from engine.config import Config, load_config
from engine.data.base import DataError
from engine.tasks import OnlineTask, prepare_online
from rewards.item import Item
from rewards.load import RewardError
from rewards.score import Judgement, Score
from workers.records import Prompt
from workers.reward_pool import RewardPool
from workers.reward_worker import limits_of

SPY = """
import pathlib
def saw(given):
    with pathlib.Path(__file__).with_name("saw.txt").open("a") as file:
        file.write(f"{given!r}\\n")
"""


def config_of(folder: Path, text: str, *overrides: str, data: str) -> Config:
    (folder / "spy.py").write_text(SPY)
    (folder / "mine.py").write_text(f"from spy import saw\n{text}")
    files = [
        "data=files",
        f"data.path={folder / data}",
        "data.held_out=0",
        "evaluation.prompts=0",
        "reward.processes=1",
    ]
    return load_config([*files, f"reward.function={folder}/mine.py:{_name(text)}", *overrides])


def _name(text: str) -> str:
    return "compute_score" if "def compute_score" in text else "reward_func"


def write(folder: Path, *rows: dict[str, Any]) -> str:
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return "rows.jsonl"


def judged(config: Config, task: OnlineTask, prompt: Prompt, *texts: str) -> tuple[Judgement, ...]:
    """Responses to one prompt, judged by the processes of a reward worker."""
    (folder_of(config) / "saw.txt").unlink()  # what the canary was given
    with closing(RewardPool(task.rewards, limits_of(config.reward), processes=1)) as pool:
        return pool.judge(0, [_item(prompt, text) for text in texts]).result()


def folder_of(config: Config) -> Path:
    return Path(config.reward.function).parent


def seen(config: Config) -> list[Any]:
    """What each call was given."""
    return [ast.literal_eval(line) for line in (folder_of(config) / "saw.txt").read_text().splitlines()]


def _item(prompt: Prompt, text: str) -> Item:
    return Item(
        id=prompt.id,
        response=text,
        answer=prompt.answer,
        prompt="<user>6*7=<assistant>",
        messages=tuple({"role": message.role, "content": message.content} for message in prompt.messages),
        from_text=prompt.from_text,
        token_ids=tuple(range(len(text) + 1)),  # and an end token
        row=prompt.row,
    )


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6*7="}]

# ----------------------------------------------------------------------------- verl

VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    saw(dict(locals()))
    if data_source != "sums":
        raise NotImplementedError(f"Reward function is not implemented for {data_source=}")
    wanted = ground_truth if isinstance(ground_truth, (list, str)) else ground_truth["target"]
    acc = solution_str.strip() in wanted if isinstance(wanted, list) else solution_str.strip() == str(wanted)
    return {"score": 1.0 if acc else -1.0, "acc": acc, "pred": solution_str, "turns": extra_info["num_turns"]}
"""


def verl_row(ground_truth: object) -> dict[str, Any]:
    return {
        "data_source": "sums",
        "prompt": ASKED,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"split": "train", "index": 0, "numbers": [6, 7]},
    }


@pytest.mark.parametrize("ground_truth", ["42", ["42", "forty-two"], {"target": 42, "numbers": [6, 7]}])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_verl(tmp_path: Path, kind: str, ground_truth: object) -> None:
    row = verl_row(ground_truth)
    write(tmp_path, row)
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    config = config_of(tmp_path, VERL, data=f"rows.{kind}")
    task = prepare_online(config)
    right, wrong = judged(config, task, task.prompts[0], "42", "43")
    assert right == Score(total=1.0, parts={"compute_score": 1.0, "acc": 1.0, "turns": 2.0})
    assert wrong == Score(total=-1.0, parts={"compute_score": -1.0, "acc": 0.0, "turns": 2.0})
    # verl adds the last two itself: https://github.com/volcengine/verl, reward_manager/naive.py.
    own = {"num_turns": 2, "rollout_reward_scores": {}}
    asked = {"data_source": "sums", "ground_truth": ground_truth, "extra_info": row["extra_info"] | own, "kwargs": {}}
    assert seen(config) == [{"solution_str": text, **asked} for text in ("42", "43")]


def test_verl_in_batches_with_settings_of_its_own(tmp_path: Path) -> None:
    text = """
def compute_score(data_sources, solution_strs, ground_truths, extra_infos, penalty):
    saw(dict(locals()))
    return [1.0 if said == true else -penalty for said, true in zip(solution_strs, ground_truths, strict=True)]
"""
    config = config_of(tmp_path, text, "reward.arguments.penalty=0.5", data=write(tmp_path, verl_row("42")))
    task = prepare_online(config)
    right, wrong = judged(config, task, task.prompts[0], "42", "43")
    assert (right.total, wrong.total) == (1.0, -0.5)
    [given] = seen(config)
    assert given.pop("extra_infos")[1]["index"] == 0
    texts = {"solution_strs": ["42", "43"], "ground_truths": ["42", "42"]}
    assert given == {"data_sources": ["sums", "sums"], "penalty": 0.5, **texts}


# ----------------------------------------------------------------------------- EasyR1

EASYR1 = """
import re
from typing import Any

REWARD_NAME = "math"
REWARD_TYPE = "batch"

def compute_score(reward_inputs: list[dict[str, Any]], format_weight: float = 0.1) -> list[dict[str, float]]:
    saw(dict(locals()))
    scores = []
    for reward_input in reward_inputs:
        thought = 1.0 if re.fullmatch(r"<think>.*</think>.*", reward_input["response"]) else 0.0
        right = 1.0 if reward_input["response"].endswith(reward_input["ground_truth"]) else 0.0
        scores.append({"overall": (1 - format_weight) * right + format_weight * thought, "format": thought,
                       "accuracy": right})
    return scores
"""


def test_easyr1(tmp_path: Path) -> None:
    rows = write(tmp_path, {"problem": "6*7=", "answer": "42"})
    config = config_of(tmp_path, EASYR1, "reward.arguments.format_weight=0.25", data=rows)
    task = prepare_online(config)
    right, wrong = judged(config, task, task.prompts[0], "<think>6*7</think>42", "43")
    assert right == Score(total=1.0, parts={"compute_score": 1.0, "format": 1.0, "accuracy": 1.0})
    assert wrong.total == 0.0
    given = [("<think>6*7</think>42", 21), ("43", 3)]
    inputs = [{"response": text, "response_length": length, "ground_truth": "42"} for text, length in given]
    assert seen(config) == [{"reward_inputs": inputs, "format_weight": 0.25}]


def test_easyr1_one_by_one_with_numbers_as_answers(tmp_path: Path) -> None:
    text = """
REWARD_TYPE = "sequential"
def compute_score(reward_input):
    saw(dict(locals()))
    return {"overall": float(reward_input["response"] == f"{reward_input['ground_truth']:.1f}")}
"""
    config = config_of(tmp_path, text, data=write(tmp_path, {"problem": "6*7=", "answer": 42}))
    task = prepare_online(config)
    right, wrong = judged(config, task, task.prompts[0], "42.0", "42")
    assert (right.total, wrong.total) == (1.0, 0.0)
    assert [call["reward_input"]["ground_truth"] for call in seen(config)] == [42, 42]


# ----------------------------------------------------------------------------- TRL

TRL_TEXT = """
import re
def reward_func(completions, ground_truth, log_extra=None, log_metric=None, **kwargs):
    known = "trainer_state" in kwargs
    saw({"completions": completions, "ground_truth": ground_truth, **kwargs, "trainer_state": known})
    extracted = [re.search(r"\\d+", completion) for completion in completions]
    pairs = zip(extracted, ground_truth)
    rewards = [None if found is None else 1.0 * (int(found[0]) == truth) for found, truth in pairs]
    if log_extra:
        log_extra("golden_answer", list(ground_truth))
    if log_metric:
        log_metric("accuracy", 0.5)
    return rewards
"""
TRL_TALK = """
def reward_func(prompts, completions, completion_ids, solution, level, **kwargs):
    saw({"prompts": prompts, "completions": completions, "ids": completion_ids, "solution": solution, "level": level})
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if content in wanted else 0.0 for content, wanted in zip(contents, solution, strict=True)]
"""


def test_trl_with_texts(tmp_path: Path) -> None:
    row = {"prompt": "6*7=", "ground_truth": 42, "tags": ["sum", "easy"], "note": None}
    config = config_of(tmp_path, TRL_TEXT, data=write(tmp_path, row))
    task = prepare_online(config)
    right, wrong, unknown = judged(config, task, task.prompts[0], "it is 42", "it is 43", "who knows")
    assert (right, wrong.total) == (Score(total=1.0, parts={"reward_func": 1.0}), 0.0)
    assert unknown.kind.value == "unscorable"
    [given] = seen(config)
    assert given.pop("completion_ids") == [list(range(size)) for size in (9, 9, 10)]
    texts = {"prompts": ["6*7="] * 3, "completions": ["it is 42", "it is 43", "who knows"]}
    columns = {"ground_truth": [42] * 3, "tags": [["sum", "easy"]] * 3, "note": [None] * 3}
    # A column that TRL's own data need not have.
    assert given.pop("answer") == [42] * 3
    assert given == {**texts, **columns, "trainer_state": True}


def test_trl_with_messages_and_solutions_of_its_own_kind(tmp_path: Path) -> None:
    row = {"prompt": ASKED, "solution": ["42", "forty-two"], "level": 3}
    config = config_of(tmp_path, TRL_TALK, "data.format=trl", data=write(tmp_path, row))
    task = prepare_online(config)
    assert task.prompts[0].answer == ""
    right, wrong = judged(config, task, task.prompts[0], "forty-two", "43")
    assert (right.total, wrong.total) == (1.0, 0.0)
    [given] = seen(config)
    assert given["prompts"] == [ASKED, ASKED]
    assert given["completions"] == [[{"role": "assistant", "content": text}] for text in ("forty-two", "43")]
    assert given["ids"] == [list(range(10)), list(range(3))]
    assert (given["solution"], given["level"]) == ([["42", "forty-two"]] * 2, [3, 3])


def test_trl_with_prompts_alone(tmp_path: Path) -> None:
    text = "def reward_func(completions, **kwargs):\n    saw({})\n    return [-abs(20.0 - len(c)) for c in completions]"
    rows = write(tmp_path, {"prompt": "Say something."})
    with pytest.raises(DataError, match=r"data\.format=trl"):
        prepare_online(config_of(tmp_path, text, data=rows))
    config = config_of(tmp_path, text, "data.format=trl", data=rows)
    task = prepare_online(config)
    assert [one.total for one in judged(config, task, task.prompts[0], "a" * 20, "a")] == [0.0, -19.0]


def test_a_trl_function_that_asks_how_far_training_is_is_told_before_a_run(tmp_path: Path) -> None:
    text = """
def reward_func(completions, trainer_state, **kwargs):
    return [1.0 * (trainer_state.global_step > 10) for _ in completions]
"""
    rows = write(tmp_path, {"prompt": "6*7=", "answer": "42"})
    with pytest.raises(RewardError, match=r"trainer_state\.global_step: how far training is, a reward is not told"):
        prepare_online(config_of(tmp_path, text, data=rows))


def test_a_trl_function_that_misses_a_column_is_told_before_a_run(tmp_path: Path) -> None:
    rows = write(tmp_path, {"prompt": "6*7=", "answer": "42"})
    with pytest.raises(RewardError) as caught:
        prepare_online(config_of(tmp_path, TRL_TEXT, data=rows))
    assert "missing 1 required positional argument: 'ground_truth'" in str(caught.value)


# ----------------------------------------------------------------------------- OpenRLHF

OPENRLHF = """
import torch

def reward_func(queries, prompts, labels, **kwargs):
    saw(dict(locals()))
    rewards = []
    for query, prompt, label in zip(queries, prompts, labels):
        response = query[len(prompt):] if prompt in query else query
        rewards.append(1.0 if response.strip() == str(label) else 0.0)
    rewards = torch.tensor(rewards, dtype=torch.float)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"math_accuracy": rewards.mean()}}
"""


def test_openrlhf(tmp_path: Path) -> None:
    config = config_of(tmp_path, OPENRLHF, data=write(tmp_path, {"input": ASKED, "label": "42"}))
    task = prepare_online(config)
    right, wrong = judged(config, task, task.prompts[0], "42", "43")
    assert right == Score(total=1.0, parts={"reward_func": 1.0, "scores": 1.0, "math_accuracy": 0.5})
    assert wrong == Score(total=0.0, parts={"reward_func": 0.0, "scores": 0.0, "math_accuracy": 0.5})
    prompt = "<user>6*7=<assistant>"
    queries = [f"{prompt}42", f"{prompt}43"]
    assert seen(config) == [{"queries": queries, "prompts": [prompt] * 2, "labels": ["42"] * 2, "kwargs": {}}]


@pytest.mark.parametrize(
    ("row", "settings", "label"),
    [
        ({"input": "6*7=", "label": 42}, [], 42),
        ({"input": "6*7=", "label": [42, "forty-two"]}, ["data.format=openrlhf"], [42, "forty-two"]),
        ({"input": "6*7="}, ["data.format=openrlhf"], ""),
        ({"question": "6*7=", "final": "42"}, ["data.columns={prompt: question, answer: final}"], "42"),
    ],
    ids=["number", "list", "no label", "keys of one's own"],
)
def test_labels_of_openrlhf(tmp_path: Path, row: dict[str, Any], settings: list[str], label: object) -> None:
    text = """
def reward_func(queries, prompts, labels):
    saw(labels)
    return [len(query) - len(prompt) for query, prompt in zip(queries, prompts)]
"""
    config = config_of(tmp_path, text, *settings, data=write(tmp_path, row))
    task = prepare_online(config)
    assert [one.total for one in judged(config, task, task.prompts[0], "42", "7")] == [2.0, 1.0]
    assert seen(config) == [[label, label]]
