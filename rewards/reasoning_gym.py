"""reasoning-gym's own judgement of an answer to one of its tasks (https://github.com/open-thought/reasoning-gym).

Also the one place that asks that library for a task, so that questions and judgements come from the same settings.
"""

from __future__ import annotations

import difflib
import functools
import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rewards.score import keeps_nothing

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

ANSWER_TAG = "answer"


class UnknownTask(ValueError):
    """The library has no such task, or the task has no such setting: for people."""


@keeps_nothing
def score(response: str, answer: str, task: str, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> float:
    """From 0 to 1, by the task's own `score_answer`: partly right answers get a part.

    Judged is what the last `<answer>...</answer>` encloses, or else the whole response.

    >>> leg = {"question": "How many legs has 1 cow?", "answer": "4", "metadata": {}}
    >>> score("<answer>4</answer>", "4", task="leg_counting", settings={}, entry=leg)
    1.0
    """
    from reasoning_gym.utils import extract_answer

    enclosed = extract_answer(response, tag_name=ANSWER_TAG)
    judged = response.strip() if enclosed is None else enclosed
    return float(_judge(task, json.dumps(settings, sort_keys=True)).score_answer(judged, dict(entry)))


def make_task(task: str, settings: Mapping[str, Any], *, size: int, seed: int) -> ProceduralDataset:
    """`size` entries of a task; entry i of seed s is entry 0 of seed s + i.

    Raises UnknownTask with the nearest name, or with what the task says of its settings.
    """
    # The library takes seconds to import, and one of its own dependencies makes Python warn while it is compiled.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(DATASETS))}"
        raise UnknownTask(f"reasoning-gym has no task {task!r}; {hint}")
    try:
        return reasoning_gym.create_dataset(task, **settings, size=size, seed=seed)
    except (TypeError, ValueError, AssertionError) as error:
        raise UnknownTask(f"reasoning-gym's {task} does not take {dict(settings)}: {error}") from error


@functools.cache
def _judge(task: str, settings: str) -> ProceduralDataset:
    return make_task(task, json.loads(settings), size=1, seed=0)
