"""Puzzles of reasoning-gym: reproducible, held out without leaks, and judged as the library judges them."""

from __future__ import annotations

import pickle

import pytest
import reasoning_gym

from engine.config import load_config
from engine.data.base import DataError, Split
from engine.data.reasoning_gym import HELD_OUT_SEED, ReasoningGymData
from engine.judging import reward_specs
from rewards.calling import BoundReward
from rewards.item import Item
from rewards.score import Judgement, Score
from workers.config import RewardConfig

SMALL_SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def test_questions_are_the_librarys_own_entries() -> None:
    data = ReasoningGymData(task="chain_sum", rows=5, held_out=3, seed=7, instruction="Think.", system_prompt="Hello.")
    theirs = list(reasoning_gym.create_dataset("chain_sum", size=5, seed=7))
    ours = data.questions(Split.TRAIN)

    assert [question.row["entry"] for question in ours] == theirs
    assert [turn.content for turn in ours[0].messages] == ["Hello.", f"{theirs[0]['question']}\nThink."]
    assert [question.answer for question in ours] == [entry["answer"] for entry in theirs]
    held_out = list(reasoning_gym.create_dataset("chain_sum", size=3, seed=7 + HELD_OUT_SEED))
    assert [question.row["entry"] for question in data.questions(Split.HELD_OUT)] == held_out


def test_no_training_question_reads_like_a_held_out_one() -> None:
    data = ReasoningGymData(task="chain_sum", settings=SMALL_SUMS, rows=400, held_out=50)
    train, held_out = ({q.messages[-1].content for q in data.questions(split)} for split in Split)
    assert len(held_out) > 20
    assert not train & held_out
    # There are 200 such sums, so without leaving any out the two would overlap.
    assert len(train) > 100


def judged_by(reward: BoundReward, response: str, answer: str, row: dict[str, object]) -> Judgement:
    [judgement] = reward.judge(
        [
            Item(
                id="0/0",
                response=response,
                answer=answer,
                prompt="",
                messages=(),
                from_text=True,
                token_ids=(),
                row=row,
            )
        ]
    )
    return judgement


@pytest.mark.parametrize("task", ["chain_sum", "countdown", "knights_knaves", "letter_counting", "word_sorting", "gcd"])
def test_the_reward_is_the_tasks_own_score_after_a_trip_to_another_process(task: str) -> None:
    question = ReasoningGymData(task=task, rows=1, held_out=0).questions(Split.TRAIN)[0]
    reward = BoundReward(*reward_specs(RewardConfig(function="rewards.reasoning_gym:score")))
    theirs = reasoning_gym.create_dataset(task, size=1, seed=0)
    answer, row = pickle.loads(pickle.dumps((question.answer, question.row)))
    for response in (answer, f"Let me see. <answer>{answer}</answer>", f"{answer} or so", "", "<answer>no</answer>"):
        judged = {f"Let me see. <answer>{answer}</answer>": answer, "<answer>no</answer>": "no"}.get(response, response)
        expected = theirs.score_answer(judged, theirs[0])
        verdict = judged_by(reward, response, answer, row)
        assert isinstance(verdict, Score)
        assert verdict.total == pytest.approx(expected)
    assert judged_by(reward, answer, answer, row).total == 1.0


@pytest.mark.parametrize(
    ("task", "settings", "words"),
    [
        ("chain_sums", {}, "did you mean chain_sum"),
        ("chain_sum", {"terms": 2}, "unexpected keyword argument 'terms'"),
        ("chain_sum", {"min_terms": 9}, "max_terms must be >= min_terms"),
    ],
)
def test_an_unknown_task_or_setting_is_told(task: str, settings: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ReasoningGymData(task=task, settings=settings).questions(Split.TRAIN)


def test_task_and_settings_are_typed_at_the_command_line() -> None:
    config = load_config(["data=reasoning_gym", "data.task=chain_sum", "data.settings={min_terms:2,max_terms:2}"])
    assert config.data == ReasoningGymData(task="chain_sum", settings={"min_terms": 2, "max_terms": 2})
    assert config.reward.function == "rewards.reasoning_gym:score"


@pytest.mark.slow
def test_every_task_of_the_library_gives_a_question_and_judges_its_own_answer() -> None:
    from reasoning_gym.factory import DATASETS

    # composite needs other tasks named in its settings.
    for task in sorted(set(DATASETS) - {"composite"}):
        question = ReasoningGymData(task=task, rows=1, held_out=0).questions(Split.TRAIN)[0]
        reward = BoundReward(*reward_specs(RewardConfig(function="rewards.reasoning_gym:score")))
        row = pickle.loads(pickle.dumps(question.row))
        assert isinstance(judged_by(reward, question.answer, question.answer, row), Score), task
