"""Functions as the users of other systems write them, called as those systems call them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rewards.calling import BoundReward
from rewards.item import Item
from rewards.load import RewardError, read_reward
from rewards.score import Failure, FailureKind, Judgement, Score
from rewards.spec import Convention, Isolation, RewardSpec


@pytest.fixture
def bind(tmp_path: Path):
    def bound(text: str, convention: Convention = Convention.AUTO, **arguments: object) -> BoundReward:
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        spec = RewardSpec(
            name="f",
            source=read_reward(f"{tmp_path}/mine.py:f"),
            convention=convention,
            arguments=arguments,
            weight=1.0,
            data_sources=(),
            abstains=False,
            isolation=Isolation.AUTO,
        )
        return BoundReward(spec)

    return bound


def items(*responses: str, answer: str = "46", from_text: bool = False, **row: object) -> list[Item]:
    return [
        Item(
            id=f"0/{number}",
            response=response,
            answer=answer,
            prompt="<|user|>12+34=<|assistant|>",
            messages=({"role": "user", "content": "12+34="},),
            from_text=from_text,
            token_ids=tuple(range(len(response))),
            row=row,
        )
        for number, response in enumerate(responses)
    ]


def totals(judgements: list[Judgement]) -> list[object]:
    """Each score's total, or the kind of failure."""
    return [one.total if isinstance(one, Score) else one.kind for one in judgements]


def test_native_gets_columns_and_arguments(bind) -> None:
    reward = bind("def f(response, answer, *, level, scale=1): return scale * level * (response == answer)", scale=3)
    assert (reward.convention, reward.judges_together) == (Convention.NATIVE, False)
    assert totals(reward.judge(items("46", "7", level=2, answer="46"))) == [6.0, 0.0]


def test_native_lists_get_columns_as_lists(bind) -> None:
    text = """
def f(responses, answers, level, scale):
    assert len(responses) == len(answers) == len(level) == 3
    table = {"46": 1.0, "7": {"a": 0.25, "b": 0.5}}
    return [scale * table[r] if r == a else table.get(r) for r, a in zip(responses, answers)]
"""
    reward = bind(text, scale=2)
    assert (reward.convention, reward.judges_together) == (Convention.BATCH, True)
    assert totals(reward.judge(items("46", "7", "?", level=1))) == [2.0, 0.75, FailureKind.UNSCORABLE]


def test_coroutines_of_siblings_run_side_by_side_and_fail_alone(bind) -> None:
    text = """
import asyncio
waiting, met = [], None
async def f(response, answer, tags):
    global met
    met = met or asyncio.Event()
    tags.append(response)
    waiting.append(response)
    if len(waiting) == 3:
        met.set()  # only where all three have begun before one has ended
    await asyncio.wait_for(met.wait(), 5)
    if response == "bad":
        raise KeyError("of mine")
    return len(tags)
"""
    reward = bind(text)
    assert reward.judges_together
    first, bad, last = reward.judge(items("46", "bad", "7", tags=[]))
    assert totals([first, last]) == [1.0, 1.0]  # each has a row of its own
    assert isinstance(bad, Failure) and bad.kind is FailureKind.EXCEPTION
    assert "KeyError: 'of mine'" in bad.reason and "calling.py" not in bad.reason


def test_a_long_lived_async_function_keeps_its_event_loop(bind) -> None:
    text = """
import asyncio
from rewards.score import keeps_nothing
loops = set()
@keeps_nothing
async def f(response, answer):
    loops.add(asyncio.get_running_loop())
    return len(loops)
"""
    reward = bind(text)
    assert totals(reward.judge(items("1")) + reward.judge(items("2"))) == [1.0, 1.0]
    reward._runner.close()


TRL_CONVERSATIONAL = """
def f(completions, level, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    assert [p[-1]["role"] for p in kwargs["prompts"]] == ["user"] * len(texts)
    assert [len(ids) for ids in kwargs["completion_ids"]] == [len(text) for text in texts]
    return [None if text == "?" else float(text == right) * n for text, right, n in zip(texts, kwargs["answer"], level)]
"""
TRL_TEXT = """
async def f(prompts, completions, completion_ids, trainer_state, log_extra, log_metric):
    log_extra("text", completions)
    log_metric("mean", 0.5)
    return [len(p + c) + len(ids) for p, c, ids in zip(prompts, completions, completion_ids)]
"""


def test_trl(bind) -> None:
    reward = bind(TRL_CONVERSATIONAL)
    assert (reward.convention, reward.judges_together) == (Convention.TRL, True)
    assert totals(reward.judge(items("46", "7", "?", level=2))) == [2.0, 0.0, FailureKind.UNSCORABLE]
    assert totals(bind(TRL_TEXT).judge(items("46", "7", from_text=True))) == [10.0, 8.0]


def test_verl(bind) -> None:
    text = """
def f(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
    if data_source != "openai/gsm8k":
        raise NotImplementedError(data_source)
    right = solution_str in ground_truth["any"]
    return {"score": right + bonus, "acc": right, "index": extra_info["index"], "pred": solution_str}
"""
    reward = bind(text, bonus=0.5)
    assert (reward.convention, reward.judges_together) == (Convention.VERL, False)
    row = {"data_source": "openai/gsm8k", "reward_model": {"ground_truth": {"any": ["46"]}}, "extra_info": {"index": 9}}
    [right, wrong] = reward.judge(items("46", "7", answer="no", **row))
    assert right == Score(total=1.5, parts={"f": 1.5, "acc": 1.0, "index": 9.0})
    assert wrong.total == 0.5
    with pytest.raises(NotImplementedError):
        reward.judge(items("46"))
    text = "async def f(data_source, solution_str, ground_truth, extra_info, **kw): return solution_str == ground_truth"
    assert totals(bind(text).judge(items("46", "7"))) == [1.0, 0.0]


def test_verl_batch(bind) -> None:
    text = """
def f(data_sources, solution_strs, ground_truths, extra_infos, **kwargs):
    return [{"score": float(s == g), "length": len(s)} for s, g in zip(solution_strs, ground_truths)]
"""
    reward = bind(text)
    assert (reward.convention, reward.judges_together) == (Convention.VERL_BATCH, True)
    assert totals(reward.judge(items("46", "7"))) == [1.0, 0.0]


def test_easyr1(bind) -> None:
    text = """
def one(given, weight):
    accuracy = float(given["response"] == given["ground_truth"])
    return {"overall": (1 - weight) * accuracy + weight, "accuracy": accuracy, "length": given["response_length"]}
def f(reward_input{s}, format_weight=0.25):
    return {body}
"""
    many = text.replace("{s}", "s").replace("{body}", "[one(given, format_weight) for given in reward_inputs]")
    single = text.replace("{s}", "").replace("{body}", "one(reward_input, format_weight)")
    for reward, together in ((bind(many), True), (bind(single), False)):
        assert (reward.convention, reward.judges_together) == (Convention.EASYR1, together)
        assert reward.judge(items("46", "7")) == [
            Score(total=1.0, parts={"f": 1.0, "accuracy": 1.0, "length": 2.0}),
            Score(total=0.25, parts={"f": 0.25, "accuracy": 0.0, "length": 1.0}),
        ]
    [failure] = bind("def f(reward_input): return {'accuracy': 1.0}").judge(items("46"))
    assert failure.kind is FailureKind.MISSHAPED and "'overall'" in failure.reason


def test_openrlhf(bind) -> None:
    text = """
import torch
def f(queries, prompts, labels, **kwargs):
    right = [float(q[len(p):] == label) for q, p, label in zip(queries, prompts, labels)]
    rewards = torch.tensor(right)
    return {"rewards": rewards * 2, "scores": rewards, "extra_logs": {"short": rewards + 1, "one": torch.ones(1)}}
"""
    reward = bind(text)
    assert (reward.convention, reward.judges_together) == (Convention.OPENRLHF, True)
    assert reward.judge(items("46", "7")) == [
        Score(total=2.0, parts={"f": 2.0, "scores": 1.0, "short": 2.0}),
        Score(total=0.0, parts={"f": 0.0, "scores": 0.0, "short": 1.0}),
    ]
    for returned in ("torch.tensor([1.0, 0.5])", "[1.0, 0.5]"):
        text = f"import torch\ndef f(queries, prompts, labels): return {returned}"
        assert totals(bind(text).judge(items("46", "7"))) == [1.0, 0.5]
    number = bind("def f(queries, prompts, labels): return 1.0")
    assert totals(number.judge(items("46"))) == [1.0]
    assert totals(number.judge(items("46", "7"))) == [FailureKind.MISSHAPED] * 2


@pytest.mark.parametrize(
    "parameters", ["responses, answers", "completions", "solution_strs", "reward_inputs", "queries, prompts, labels"]
)
@pytest.mark.parametrize("returned", ["1.0", "[1.0]", "[1.0] * 3", "None", "'12'", "{'score': 1.0}", "{1.0, 2.0}"])
def test_one_value_is_never_spread_over_several_responses(bind, parameters: str, returned: str) -> None:
    reward = bind(f"def f({parameters}, **rest): return {returned}")
    assert totals(reward.judge(items("46", "7"))) == [FailureKind.MISSHAPED] * 2


def test_a_wrong_value_in_a_list_fails_its_own_response(bind) -> None:
    reward = bind("def f(completions, **rest): return [1.0, {'score': 1.0}, [1.0], float('nan')]")
    wrong = [FailureKind.MISSHAPED, FailureKind.MISSHAPED, FailureKind.NOT_FINITE]
    assert totals(reward.judge(items("1", "2", "3", "4"))) == [1.0, *wrong]
    reward = bind("def f(solution_strs, **rest): return [{'acc': 1.0}, 0.5]")
    assert totals(reward.judge(items("1", "2"))) == [FailureKind.MISSHAPED, 0.5]


@pytest.mark.parametrize(
    ("head", "convention", "said"),
    [
        (
            "text, answer",
            Convention.AUTO,
            r"f\(text, answer\), which fits no known(.|\n)*verl: data_source(.|\n)*reward\.",
        ),
        ("text, **row", Convention.AUTO, "fits no known convention"),
        ("response", Convention.AUTO, "takes no keyword answer"),
        ("response, answer, /", Convention.AUTO, "fits no known convention"),
        ("response, answer, queries", Convention.AUTO, "fits native and openrlhf; say which"),
        ("response, answer", Convention.TRL, "does not fit reward.convention=trl"),
        ("solution_str, level", Convention.AUTO, "needs level, but verl calls it with"),
    ],
)
def test_a_function_that_cannot_be_called_is_explained(bind, head: str, convention: Convention, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        bind(f"def f({head}): ...", convention)


def test_a_named_convention_decides(bind) -> None:
    reward = bind("def f(response, answer, queries): return len(queries)", Convention.NATIVE)
    assert totals(reward.judge(items("46", queries="abc"))) == [3.0]
    reward = bind("def f(**all_of_it): return [len(c) for c in all_of_it['solution_strs']]", Convention.VERL_BATCH)
    assert totals(reward.judge(items("46", "7"))) == [2.0, 1.0]


def test_arguments_are_checked_in_every_convention(bind) -> None:
    with pytest.raises(RewardError, match=r"'scal', but f takes .*\(did you mean scale\?\)"):
        bind("def f(completions, scale=1.0): ...", scal=2.0)
    with pytest.raises(RewardError, match="every row brings itself"):
        bind("def f(solution_str, ground_truth): ...", ground_truth="1")


def test_a_function_that_changes_its_row_changes_nobody_elses(bind) -> None:
    given = items("46", "7", tags=[])
    assert totals(bind("def f(response, answer, tags): tags.append(1); return len(tags)").judge(given)) == [1.0, 1.0]
    assert given == [replace(item, row={"tags": []}) for item in given]
