"""Every reward function, tried on a row of the run before anything expensive starts: by the driver and on each node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards.item import Item
from rewards.load import RewardError, check_columns, listed
from rewards.score import Failure, FailureKind, Judgement, Score
from rewards.spec import ROUTING_COLUMN, Convention, RewardSpec
from workers.reward_pool import RewardPool

BROKEN = (
    FailureKind.EXCEPTION,
    FailureKind.CRASH,
    FailureKind.TIMEOUT,
    FailureKind.MISSHAPED,
    FailureKind.UNAVAILABLE,
)
"""How a function fails that would fail on other responses, too."""
FOREIGN = frozenset(Convention) - {Convention.AUTO, Convention.NATIVE, Convention.BATCH}
HOW_TO_NAME = "conventions are seen from the functions' parameters; reward.convention=... names one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """What one function is tried on: an empty response to a row that it judges, and that row's own answer.

    Example:
        Canary(function=0, empty=Item(id="an empty response", response="", answer="46", ...),
               right=Item(id="its answer as the response", response="46", answer="46", ...))
    """

    function: int
    """Its number among the run's functions."""
    empty: Item
    right: Item


def try_out(pool: RewardPool, specs: Sequence[RewardSpec], canaries: Sequence[Canary]) -> tuple[str, ...]:
    """A line a function: how it is called, and what it gave. Raises RewardError, for people, where one is broken.

    Example of a line:
        reward my.py:compute_score (verl): an empty response scores 0, the first answer 1
    """
    lines: dict[int, str] = {}
    for canary in canaries:  # the first one of a function speaks for it
        lines.setdefault(canary.function, _try(pool, specs[canary.function], canary))
    is_seen = any(specs[n].convention is Convention.AUTO and pool.convention(n) in FOREIGN for n in lines)
    return (*lines.values(), *([HOW_TO_NAME] if is_seen else []))


def _try(pool: RewardPool, spec: RewardSpec, canary: Canary) -> str:
    row = canary.empty.row
    check_columns(spec, row)
    of_empty, of_right = pool.judge(canary.function, [canary.empty, canary.right]).result()
    for item, judgement in ((canary.empty, of_empty), (canary.right, of_right)):
        if isinstance(judgement, Failure) and judgement.kind in BROKEN:
            tried = "an empty response" if item is canary.empty else "a row's answer as the response"
            source = f" of {ROUTING_COLUMN} {row[ROUTING_COLUMN]!r}" if ROUTING_COLUMN in row else ""
            raise RewardError(
                f"{spec.source.spec} failed ({judgement.kind.value}) when tried with {tried}, the answer "
                f"{item.answer!r}{source} and the columns {listed(row)}:\n{judgement.reason}"
            )
    called = f"{spec.source.spec} ({pool.convention(canary.function).value})"
    return f"reward {called}: an empty response scores {_told(of_empty)}, the first answer {_told(of_right)}"


def _told(judgement: Judgement) -> str:
    return f"{judgement.total:g}" if isinstance(judgement, Score) else f"nothing ({judgement.kind.value})"
