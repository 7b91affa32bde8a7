"""Signs that a policy learns to please its reward in another way than was meant, and that a process keeps what it needs
no more: pure functions of a run's metrics.

An alarm says where to look, it proves nothing: honest runs grow longer, too. Two windows of steps are compared, the
run's first and its newest: an alarm needs a change that is large as such *and* large against the noise within them. A
trend within a window is no noise: a policy that has found out what pays changes within a few steps. Memory is another
matter: it may jump, and it may rise for a while; what is told is that it rises and rises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.history import History
from engine.metrics import NOT_PARTS
from workers.records import Metrics
from workers.stopped import RunStopped

WINDOW = 10
"""Steps behind a mean; nothing is compared before there are two windows."""
SURE = 6.0
"""How many standard errors a change must have; the newest window is looked at after every step, so that much chance is
needed to be safe from chance."""
LENGTH_FACTOR = 1.5
SHARE_CHANGE = 0.2
"""Of responses: cut off, or (as a share of their pieces) repeating themselves."""
UNJUDGED_CHANGE = 0.02
"""The run stops by itself at reward.max_failure_fraction."""
PART_CHANGE = 0.1
"""Of the largest mean that the part has had."""
SAME_TEXT_SHARE = 0.25
UNIFORM_SHARE = 0.95
MEMORY_SHARE, MEMORY_GIB = 0.1, 0.25
"""Least rise of what a process holds: of what it was, and as such."""
PARTS = 8
"""Of a stretch of steps. In each, memory is above the part before by at least half of what an even rise would make: a
jump falls into one of them, a cache that fills up rises less and less."""
RESIDENT = re.compile(r"memory/(\w+)/resident_gib")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One sign, as of the newest step.

    Example:
        Alarm(name="length", told="the reward rose from 0.31 to 0.80 while responses went from 12.0 to 41.5 tokens",
              look_at="runs/one/rollouts/step_000030.jsonl", mend="the reward")
    """

    name: str
    told: str
    """The figures, for people."""
    look_at: str
    """What shows more of it."""
    mend: str
    """What is at fault, if the alarm is right."""

    @property
    def metric(self) -> str:
        return f"alarms/{self.name}"


class AlarmBegan(RunStopped):
    """An alarm began, and checks.alarms=stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Of one metric, from a run's first window to its newest."""

    before: float
    after: float
    errors: float
    """The difference in standard errors (Welch, of what each window's own line leaves); infinite without any noise."""

    def rises(self, least: float) -> bool:
        return self.after - self.before >= least and self.errors >= SURE

    def falls(self, least: float) -> bool:
        return self.before - self.after >= least and self.errors <= -SURE


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The metrics of every step so far."""

    before: History
    newest: Metrics

    def values(self, name: str) -> np.ndarray:
        """Of the steps that have it."""
        earlier = self.before.values(name)
        return np.append(earlier, self.newest[name]) if name in self.newest else earlier

    def finite(self, name: str) -> np.ndarray:
        values = self.values(name)
        return values[np.isfinite(values)]

    def change_of(self, name: str) -> Change | None:
        """None before there are two windows of steps that have it."""
        return change_of(self.finite(name))

    def newest_mean(self, name: str) -> float | None:
        """Over the newest window; None where that is not full."""
        rows = [*self.before.newest(WINDOW - 1), self.newest]
        values = [row[name] for row in rows if name in row and math.isfinite(row[name])]
        return float(np.mean(values)) if len(values) == WINDOW else None


def alarms(before: History, newest: Metrics, *, responses: Path) -> tuple[Alarm, ...]:
    """The signs that hold after the newest step. `before`: all others; `responses`: where those of the newest one
    are."""
    seen = Seen(before=before, newest=newest)
    found = ((sign.__name__.lstrip("_"), sign(seen)) for sign in SIGNS)
    of_reward = tuple(
        Alarm(name=name, told=told, look_at=str(responses), mend="the reward")
        for name, told in found
        if told is not None
    )
    return (*of_reward, *_memory(seen))


def begun(before: History, holding: Sequence[Alarm]) -> tuple[Alarm, ...]:
    """Those of `holding` that are new: no step of the window before had them."""
    recent = before.newest(WINDOW)
    return tuple(alarm for alarm in holding if not any(alarm.metric in row for row in recent))


def change_of(values: np.ndarray) -> Change | None:
    """None before there are two windows."""
    if len(values) < 2 * WINDOW:
        return None
    first, last = values[:WINDOW], values[-WINDOW:]
    difference = float(last.mean() - first.mean())
    error = math.sqrt((_noise(first) + _noise(last)) / WINDOW)
    # What rounding leaves of a line is none.
    sure = error <= 1e-9 * float(np.abs(values).max())
    errors = math.copysign(math.inf, difference) if sure else difference / error
    return Change(before=float(first.mean()), after=float(last.mean()), errors=errors)


def _noise(window: np.ndarray) -> float:
    """The variance around the line through its values."""
    steps = np.arange(len(window)) - (len(window) - 1) / 2
    deviations = window - window.mean()
    deviations -= steps * (steps @ deviations) / (steps @ steps)
    return float(deviations @ deviations) / (len(window) - 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """What a process holds, over the newest `steps` steps, in GiB: the means of the stretch's first and last part."""

    before: float
    after: float
    steps: int

    @property
    def per_100_steps(self) -> float:
        return (self.after - self.before) / (self.steps * (1 - 1 / PARTS)) * 100


def steady_rise(resident: np.ndarray) -> Rise | None:
    """Of what a process held after every step, in GiB: the longest stretch up to now, of all steps, half of them, a
    quarter and so on, in which it rose all the time, by much, and surely. None where there is none."""
    steps = len(resident)
    while steps >= PARTS * WINDOW:
        stretch = resident[-steps:]
        means = np.array([part.mean() for part in np.array_split(stretch, PARTS)])
        rise, least = means[-1] - means[0], max(MEMORY_SHARE * means[0], MEMORY_GIB)
        is_steady = np.diff(means).min() >= 0.5 * rise / (PARTS - 1)
        # Of the difference of two such means, as far as steps are independent.
        error = math.sqrt(2 * PARTS * _noise(stretch) / steps)
        if rise >= max(least, SURE * error) and is_steady:
            return Rise(before=float(means[0]), after=float(means[-1]), steps=steps)
        steps //= 2
    return None


# ---------------------------------------------------------------------------- the signs


def _length(seen: Seen) -> str | None:
    """The reward rises with the length of responses, or with their shortness: much of what reward models teach is
    length (2310.03716), and some normalisations of the loss reward it by themselves (2503.20783)."""
    reward, length = seen.change_of("reward/mean"), seen.change_of("response_length/mean")
    if reward is None or length is None or reward.errors < SURE:
        return None
    grows = length.rises((LENGTH_FACTOR - 1) * length.before)
    shrinks = length.falls((1 - 1 / LENGTH_FACTOR) * length.before)
    if not grows and not shrinks:
        return None
    return f"the reward went {_from_to(reward)} while responses went {_from_to(length, '.1f')} tokens"


def _repetition(seen: Seen) -> str | None:
    """Responses repeat themselves more, as they do where a reward is optimised past its meaning (2009.01325)."""
    change = seen.change_of("response/repetition")
    if change is None or not change.rises(SHARE_CHANGE):
        return None
    return f"the share of a response that repeats what stands in it went {_from_to(change, '.0%')}"


def _parts_apart(seen: Seen) -> str | None:
    """A part of the reward rises while another falls: a proxy is learned at the cost of what is meant (2201.03544)."""
    changes = {name: change for name in _parts(seen) if (change := seen.change_of(name)) is not None}
    rising = [name for name, change in changes.items() if change.rises(_least(seen, name))]
    falling = [name for name, change in changes.items() if change.falls(_least(seen, name))]
    if not rising or not falling:
        return None
    told = [f"{name} went {_from_to(changes[name])}" for name in (*rising, *falling)]
    return ", ".join(told)


def _same_text(seen: Seen) -> str | None:
    """One text is rewarded whatever was asked, as judges reward "Thought process:" (2507.08794)."""
    mean = seen.newest_mean("response/repeated_across_prompts")
    if mean is None or mean < SAME_TEXT_SHARE:
        return None
    return f"{mean:.0%} of the rewarded responses have a text that is also rewarded under a prompt with another answer"


def _truncated(seen: Seen) -> str | None:
    """More responses are cut off, and what judges them has not seen their end (2503.14476)."""
    change = seen.change_of("response_length/truncated_share")
    if change is None or not change.rises(SHARE_CHANGE):
        return None
    return f"the share of responses that are cut off went {_from_to(change, '.0%')}"


def _unjudged(seen: Seen) -> str | None:
    """More responses escape judgement: they are left out of training, and so is what they should have taught."""
    change = seen.change_of("reward/unjudged_share")
    if change is None or not change.rises(UNJUDGED_CHANGE):
        return None
    return f"the share of responses that could not be judged went {_from_to(change, '.1%')}"


def _uniform(seen: Seen) -> str | None:
    """All siblings score the same: the reward says nothing any more, be it because the policy found what always pays,
    because it can do all, or because it can do nothing (2503.14476)."""
    mean = seen.newest_mean("reward/uniform_groups_share")
    if mean is None or mean < UNIFORM_SHARE:
        return None
    return f"in {mean:.0%} of the groups all responses have the same score, so nothing is learned from them"


def _memory(seen: Seen) -> Iterator[Alarm]:
    """Processes hold more and more: at that rate, some day, more than there is."""
    roles = {found[1]: found[0] for name in seen.newest if (found := RESIDENT.fullmatch(name))}
    rises = {role: rise for role, name in roles.items() if (rise := steady_rise(seen.values(name))) is not None}
    told = [
        f"{role} went from {rise.before:.2f} to {rise.after:.2f} GiB in {rise.steps} steps "
        f"({rise.per_100_steps:.2f} GiB per 100 steps)"
        for role, rise in rises.items()
    ]
    if told:
        yield Alarm(
            name="memory",
            told=f"memory rises all the time: {', '.join(told)}",
            look_at=f"{' and '.join(f'memory/{role}/' for role in rises)} in metrics.jsonl",
            mend="what keeps memory",
        )


SIGNS: tuple[Callable[[Seen], str | None], ...] = (
    _length,
    _repetition,
    _parts_apart,
    _same_text,
    _truncated,
    _unjudged,
    _uniform,
)
"""Of a hacked reward; an alarm is called as its function."""


def _parts(seen: Seen) -> Iterator[str]:
    yield from (name for name in seen.newest if name.startswith("reward/") and name not in NOT_PARTS)


def _least(seen: Seen, name: str) -> float:
    return PART_CHANGE * float(np.abs(seen.finite(name)).max())


def _from_to(change: Change, form: str = ".3f") -> str:
    return f"from {change.before:{form}} to {change.after:{form}}"
