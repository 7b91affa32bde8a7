"""What judges a run: functions from settings, tried before anything starts, and rows that nobody can judge."""

from __future__ import annotations

import datetime
import json
import os
import random
from pathlib import Path

import pytest

from engine.config import Config, load_config
from engine.data.base import DataError, RowKind
from engine.judging import reward_specs
from engine.tasks import prepare_online
from rewards.load import RewardError
from rewards.spec import Convention, Isolation
from workers.canary import HOW_TO_NAME
from workers.config import FunctionConfig, RewardConfig

ROWS = [
    {"prompt": "1+1=", "answer": "2", "data_source": "sums"},
    {"prompt": "half", "answer": "1/2", "data_source": "math"},
]


def config_of(folder: Path, rewards: str, *overrides: str, rows: list[dict[str, object]] = ROWS) -> Config:
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "mine.py").write_text(rewards)
    data = ["data=files", f"data.path={folder / 'rows.jsonl'}", "data.held_out=0", "evaluation.prompts=0"]
    return load_config([*data, f"reward.function={folder / 'mine.py'}:f", "reward.timeout_s=2", *overrides])


def test_functions_are_read_with_their_settings(tmp_path: Path) -> None:
    more = ["function=rewards.math:correct", "weight=0.5", "data_sources=[math]", "abstains=true", "isolation=worker"]
    named = [f"reward.functions.maths.{setting}" for setting in more]
    text = "def f(response, answer, unit): return 1.0"
    config = config_of(tmp_path, text, "reward.arguments={unit: cm}", "reward.convention=native", *named)
    first, second = reward_specs(config.reward)
    assert (first.name, first.weight, first.arguments, first.convention) == (
        "f",
        1.0,
        {"unit": "cm"},
        Convention.NATIVE,
    )
    assert (second.name, second.weight, second.data_sources) == ("maths", 0.5, ("math",))
    assert second.abstains and second.isolation is Isolation.WORKER
    assert not second.judges(ROWS[0]) and second.judges(ROWS[1]) and first.judges(ROWS[0])


def test_each_is_tried_on_the_first_row_that_it_judges_and_what_it_gave_is_told(tmp_path: Path) -> None:
    text = "def f(response, answer, **row): return len(response)"
    maths = ["reward.functions.maths.function=rewards.math:correct", "reward.functions.maths.data_sources=[math]"]
    task = prepare_online(config_of(tmp_path, text, *maths))
    told = [remark for remark in task.remarks if remark.startswith("reward ")]
    assert told == [
        f"reward {tmp_path / 'mine.py'}:f (native): an empty response scores 0, the first answer 1",
        "reward rewards.math:correct (native): an empty response scores 0, the first answer 0",
    ]
    tried = [(canary.function, canary.empty.row["data_source"]) for canary in task.canaries]
    assert tried == [(0, "sums"), (0, "math"), (1, "math")]  # one of one's own on every source, one of ours on one


def test_a_function_that_knows_some_data_sources_only_is_told_of_the_others(tmp_path: Path) -> None:
    text = """
def f(data_source, solution_str, ground_truth, extra_info=None):
    if data_source == "sums":
        return float(solution_str == ground_truth)
    raise NotImplementedError(f"Reward function is not implemented for {data_source=}")
"""
    with pytest.raises(RewardError, match=r"of data_source 'math' and the columns data_source:(.|\n)*NotImplemented"):
        prepare_online(config_of(tmp_path, text))
    prepare_online(config_of(tmp_path, text, rows=ROWS[:1]))


def test_whose_convention_a_function_follows_is_told_and_once_that_it_was_seen(tmp_path: Path) -> None:
    text = """
def f(solution_str, ground_truth): return 1.0 * (solution_str == ground_truth)
def g(completions, **kwargs): return [len(one) for one in completions]
"""
    more = [f"reward.functions.g.function={tmp_path / 'mine.py'}:g"]
    *_, verl, trl, hint = prepare_online(config_of(tmp_path, text, *more)).remarks
    assert verl == f"reward {tmp_path / 'mine.py'}:f (verl): an empty response scores 0, the first answer 1"
    assert ":g (trl): an empty response scores 0, the first answer 1" in trl
    assert hint == HOW_TO_NAME and "reward.convention=" in hint
    named = ["reward.convention=verl", *more, "reward.functions.g.convention=trl"]
    assert HOW_TO_NAME not in prepare_online(config_of(tmp_path, text, *named)).remarks


def day() -> datetime.date:
    return datetime.date(2026, 11, 25)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"day": day()}, r"reward\.arguments\.day is datetime\.date\(2026, 11, 25\), with a date in it"),
        ({"table": {"a": [1, {"b": {1, 2}}]}}, r"reward\.arguments\.table is .*, with a set in it"),
        ({"table": {(1, 2): "a"}}, "with a tuple in it"),
        ({"near miss": 1}, "has 'near miss', which no parameter can be called"),
    ],
)
def test_arguments_are_plain_values(tmp_path: Path, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(RewardError, match=said):
        reward_specs(RewardConfig(function="rewards.number:exact", arguments=arguments))
    further = {"tidy": FunctionConfig(function="rewards.number:exact", arguments=arguments)}
    with pytest.raises(RewardError, match=said.replace("reward\\.arguments", "reward\\.functions\\.tidy\\.arguments")):
        reward_specs(RewardConfig(functions=further))
    plain = {"a": [1, 2.5, None, {"b": True, 3: "c"}], "d": float("inf"), "e": ()}
    assert reward_specs(RewardConfig(function="rewards.number:exact", arguments=plain))[0].arguments == plain


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('no such thing')", "KeyError: 'no such thing'"),
        ("import os; os._exit(3)", "exited with code 3"),
        ("return [1, 2]", "misshaped"),
        ("while True: pass", "timeout"),
        ("return 1 / (response != answer)", "a row's answer as the response"),
    ],
)
def test_a_broken_one_is_told_before_anything_starts(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(RewardError, match=r"mine\.py:f failed") as caught:
        prepare_online(config_of(tmp_path, f"def f(response, answer, **row):\n    {body}\n"))
    assert said in str(caught.value)


def test_rows_that_nobody_judges_or_whose_answer_nobody_can_read_are_bad_rows(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        {"prompt": "?", "answer": "", "data_source": "math"},
        {"prompt": "?", "answer": "3", "data_source": "x"},
    ]
    maths = ["reward.functions.maths.function=rewards.gsm8k:correct", "reward.functions.maths.data_sources=[math]"]
    sums = ["reward.functions.sums.function=rewards.number:exact", "reward.functions.sums.data_sources=[sums]"]
    rows[2]["answer"] = "the well-known one"
    config = config_of(tmp_path, "", "reward.function=", *maths, *sums, rows=rows)
    with pytest.raises(DataError) as caught:
        prepare_online(config)
    assert "rows.jsonl:3: " in str(caught.value) and "cannot read the answer 'the well-known one'" in str(caught.value)
    assert "data_source is 'x', and no reward function judges it" in str(caught.value)
    skipped = config_of(
        tmp_path, "", "reward.function=", *maths, *sums, "data.bad_rows=skip", "data.max_bad_share=0.5", rows=rows
    )
    assert [prompt.answer for prompt in prepare_online(skipped).prompts] == ["2", "1/2"]


PER_KIND, GOOD = 40, 880
"""Of each of three kinds of bad rows, among 1,000."""
JUDGES = (
    "reward.functions.maths.function=rewards.math:correct",
    "reward.functions.maths.data_sources=[math]",
    "reward.functions.gsm.function=rewards.gsm8k:correct",
    "reward.functions.gsm.data_sources=[gsm8k]",
)


def a_thousand_rows() -> tuple[list[dict[str, object]], dict[str, tuple[str, str]]]:
    """Rows in an order by chance, and of each bad one, by its id, what is wrong and in which column."""
    good = [
        {"answer": r"\\frac{1}{2}", "data_source": "math"},
        {"answer": "72 / 2 = 36\n#### 36", "data_source": "gsm8k"},
    ]
    unread = [{"answer": "the well-known one", "data_source": "gsm8k"}, {"answer": "$$", "data_source": "math"}]
    rows: list[tuple[dict[str, object], tuple[str, str] | None]] = [(good[n % 2], None) for n in range(GOOD)]
    for number in range(PER_KIND):
        rows.append((unread[number % 2], ("cannot read", "answer")))
        rows.append(
            ({"answer": "36", "data_source": ["gsm8", "sums", "", None][number % 4]}, ("judges", "data_source"))
        )
        rows.append(({"data_source": "math"}, ("missing", "answer")))
    random.Random(5).shuffle(rows)
    numbered = [{"prompt": f"{number}?", **row} for number, (row, _) in enumerate(rows)]
    return numbered, {f"rows-{line}": wrong for line, (_, wrong) in enumerate(rows, start=1) if wrong}


def test_of_a_thousand_rows_those_that_cannot_be_judged_are_told_and_no_others(tmp_path: Path) -> None:
    rows, wrong = a_thousand_rows()
    skipped = ["data.bad_rows=skip", "data.max_bad_share=0.2"]
    config = config_of(tmp_path, "", "reward.function=", *JUDGES, *skipped, rows=rows)
    task = prepare_online(config)
    bad = config.data.bad(RowKind.QUESTIONS).with_later(task.bad)
    assert (len(rows), bad.seen, len(bad.found), len(task.prompts)) == (1000, 1000, 3 * PER_KIND, GOOD)
    found = {one.id: one for one in bad.found}
    assert found.keys() == wrong.keys()
    for id, (kind, column) in wrong.items():
        assert kind in found[id].kind and found[id].column == column, found[id]
        assert found[id].problem and len(found[id].value) <= 80
        assert found[id].where == f"{tmp_path}/rows.jsonl:{id.removeprefix('rows-')}"
    assert sorted(bad.counted().split("; ")) == [
        "20 x answer: an answer that rewards.gsm8k:correct cannot read",
        "20 x answer: an answer that rewards.math:correct cannot read",
        "40 x answer: it is missing",
        "40 x data_source: a data_source that no reward function judges",
    ]
    # What is trained on is what a file without them gives.
    clean = config_of(
        tmp_path,
        "",
        "reward.function=",
        *JUDGES,
        rows=[row for n, row in enumerate(rows, 1) if f"rows-{n}" not in wrong],
    )
    same = prepare_online(clean)
    assert [(one.token_ids, one.answer, one.row) for one in same.prompts] == [
        (one.token_ids, one.answer, one.row) for one in task.prompts
    ]


def test_a_data_source_that_nobody_judges_is_told_with_the_nearest_that_is_judged(tmp_path: Path) -> None:
    rows = [{"prompt": "?", "answer": "36", "data_source": "gsm8"}]
    with pytest.raises(
        DataError, match=r"rows\.jsonl:1: data_source is 'gsm8'.*they judge gsm8k, math \(did you mean gsm8k\?\)"
    ):
        prepare_online(config_of(tmp_path, "", "reward.function=", *JUDGES, rows=rows))


CHECKED = """
import os
from rewards.score import answers_checked_by

assert os.getpid() != {driver}, "imported where the run is"

def in_metres(answer):
    {body}

@answers_checked_by(in_metres)
def f(response, answer): return float(response == answer)
"""
METRES = 'return None if answer.endswith(" m") else "it has no unit"'
LENGTHS = [{"prompt": "?", "answer": answer} for answer in ("1 m", "2 m", "2 cm", "3", "3")]


def checked(folder: Path, body: str, *overrides: str) -> Config:
    return config_of(folder, CHECKED.replace("{body}", body).format(driver=os.getpid()), *overrides, rows=LENGTHS)


def test_a_person_s_own_check_of_answers_is_asked_in_a_process_that_can_be_killed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare_online(checked(tmp_path, METRES))
    place = f"{tmp_path / 'mine.py'}:f"
    for line, answer in ((3, "2 cm"), (4, "3"), (5, "3")):
        assert f"rows.jsonl:{line}: {place} cannot read the answer '{answer}': it has no unit." in str(caught.value)
    assert f"3 of 5 rows are bad: 3 x answer: an answer that {place} cannot read" in str(caught.value)
    skipped = prepare_online(checked(tmp_path, METRES, "data.bad_rows=skip", "data.max_bad_share=0.9"))
    assert [prompt.answer for prompt in skipped.prompts] == ["1 m", "2 m"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / ('cm' not in answer) and None", "'2 cm' of rows-3:\nTraceback(.|\n)*ZeroDivisionError"),
        ("while 'cm' in answer: pass", "failed \\(timeout\\) on the answer '2 cm'"),
        ("return True", "says what is wrong with one, or None, and returned True"),
    ],
)
def test_a_broken_check_of_answers_is_told_with_the_answer_it_broke_on(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        prepare_online(checked(tmp_path, body, "reward.timeout_s=0.5"))


def test_the_check_of_a_module_s_function_is_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = checked(tmp_path, METRES, "reward.function=lengths_of_mine:f")
    (tmp_path / "mine.py").rename(tmp_path / "lengths_of_mine.py")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="lengths_of_mine:f cannot read the answer '2 cm': it has no unit"):
        prepare_online(config)


def test_rows_that_are_found_bad_late_are_told_by_their_lines_whatever_their_ids(tmp_path: Path) -> None:
    rows = [{"prompt": "?", "answer": "1", "data_source": "gsm8k", "id": id} for id in ("a", "b~2", "c")]
    rows[1]["data_source"] = "x"
    columns = ["data.columns.id=id", "data.fractions=[2]"]  # each comes twice, then as a~2
    with pytest.raises(DataError) as caught:
        prepare_online(config_of(tmp_path, "", "reward.function=", *JUDGES, *columns, rows=rows))
    assert str(caught.value).count(f"{tmp_path}/rows.jsonl:2: data_source is 'x'") == 2
    too_long = config_of(tmp_path, "", *columns, rows=[*rows, {"prompt": "1+" * 300, "answer": "1", "id": "d"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:4: the prompt has \d+ tokens"):
        prepare_online(too_long)
