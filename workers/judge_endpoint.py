"""Where the run's own judge answers, and which functions ask it. Import-light: no torch, no ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rewards.spec import RewardSpec
from workers.config import JudgeConfig

ASKING = "rewards.judge:"
"""What functions that ask a judge begin with."""
KEY_ENV = "HELIOSTAT_JUDGE_KEY"
"""The variable that holds the judge's key, where rewards run."""
NOT_YET = "the url of reward.judge.model"
"""Stands for the url until the judge is up."""
SAID_BY_JUDGE = ("model", "key_env")
"""Arguments that belong to an endpoint of one's own, beside `url`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeEndpoint:
    """A judge that can be asked.

    Example:
        JudgeEndpoint(url="http://127.0.0.1:41234/v1", model="qwen2.5-72b", key="...")
    """

    url: str
    model: str
    """The name that it is asked by."""
    key: str = field(repr=False)
    """Every request must bring it; for no log, no file and no command line."""


def asks_own_judge(function: str, arguments: Mapping[str, object]) -> bool:
    """Whether a configured function asks a judge, and names no url.

    >>> asks_own_judge("rewards.judge:rubric", {"votes": 3}), asks_own_judge("rewards.judge:rubric", {"url": "http://..."})
    (True, False)
    """
    return function.startswith(ASKING) and "url" not in arguments


def arguments_of(judge: JudgeConfig, arguments: Mapping[str, object]) -> dict[str, object]:
    """What such a function is called with; the url is still to come."""
    own = {"url": NOT_YET, "model": name_of(judge), "key_env": KEY_ENV}
    return {"max_tokens": judge.max_reply_tokens, **arguments, **own}


def name_of(judge: JudgeConfig) -> str:
    """The last part of the model's path or hub id.

    >>> name_of(JudgeConfig(model="organisation/qwen2.5-72b"))
    'qwen2.5-72b'
    """
    return Path(judge.model).absolute().name


def waits_for_judge(spec: RewardSpec) -> bool:
    """Whether the function can be called only when the run's own judge is up."""
    return spec.arguments.get("url") == NOT_YET


def with_endpoint(specs: Sequence[RewardSpec], endpoint: JudgeEndpoint) -> tuple[RewardSpec, ...]:
    """The functions, ready to be called: those that waited know where the judge is."""
    known = {"url": endpoint.url, "model": endpoint.model}
    return tuple(
        replace(spec, arguments={**spec.arguments, **known}) if waits_for_judge(spec) else spec for spec in specs
    )
