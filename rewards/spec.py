"""A reward function as configured: where it comes from, how it is called, what it counts. Import-light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

ROUTING_COLUMN = "data_source"


class Convention(Enum):
    """How a reward function is called, and what it gives back. Each may be an async function, too."""

    AUTO = "auto"
    """Seen from its parameters."""
    NATIVE = "native"
    """`f(response, answer, **row) -> float | dict | None`."""
    BATCH = "batch"
    """`f(responses, answers, **columns)`: lists, for all responses to a prompt at once."""
    TRL = "trl"
    """`f(prompts, completions, completion_ids, **columns) -> list[float | None]`. What it logs is not kept."""
    VERL = "verl"
    """`compute_score(data_source, solution_str, ground_truth, extra_info) -> float | {"score": ...}`."""
    VERL_BATCH = "verl_batch"
    """`compute_score(data_sources, solution_strs, ground_truths, extra_infos)`."""
    EASYR1 = "easyr1"
    """`compute_score(reward_inputs) -> [{"overall": ..., ...}]`, or of one `reward_input`."""
    OPENRLHF = "openrlhf"
    """`reward_func(queries, prompts, labels) -> {"rewards": ..., "scores": ..., "extra_logs": ...}`. A query ends with
    the response's text, without an end token."""


class Isolation(Enum):
    """What a call may leave behind for the next one."""

    AUTO = "auto"
    """Nothing, except for a function that says of itself that it keeps nothing (`rewards.score.keeps_nothing`)."""
    SAMPLE = "sample"
    """Nothing: each call has a process of its own, forked from one that has imported the function."""
    WORKER = "worker"
    """Everything: all calls are made in one process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSource:
    """Where a reward comes from, complete enough to build it anywhere.

    Example:
        RewardSource(spec="my/reward.py:short", file="/home/me/my/reward.py", text="def short(response, answer): ...",
                     name="short", beside={})
    """

    spec: str
    """As the person wrote it in `reward.function`."""
    file: str
    """The absolute path of the file; empty when the spec names a module."""
    text: str
    """What the file held when the run started; empty when the spec names a module."""
    name: str
    """Of the function."""
    beside: Mapping[str, str]
    """Files beside it that it imports, by their path from its folder, with what they held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """One function of those that judge a run.

    Example:
        RewardSpec(name="format", source=RewardSource(...), convention=Convention.AUTO, arguments={"tag": "answer"},
                   weight=0.1, data_sources=(), abstains=False, isolation=Isolation.AUTO)
    """

    name: str
    """The function's own name, or the one it has in `reward.functions`: its parts are logged under it."""
    source: RewardSource
    convention: Convention
    arguments: Mapping[str, object]
    weight: float
    data_sources: tuple[str, ...]
    """Rows that it judges, by their `data_source`; empty: every row."""
    abstains: bool
    """Whether None is no say, rather than a response that could not be judged."""
    isolation: Isolation

    def judges(self, row: Mapping[str, object]) -> bool:
        """Whether it is asked about responses to this row."""
        return not self.data_sources or row.get(ROUTING_COLUMN) in self.data_sources


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCheckSpec:
    """A function's own check of reference answers (`rewards.score.answers_checked_by`), in place of the function.

    Example:
        AnswerCheckSpec(name="short", source=RewardSource(...))
    """

    name: str
    """The function's."""
    source: RewardSource
    """Of the function."""


Spec = RewardSpec | AnswerCheckSpec
"""What a process is told to import, and is then asked."""
