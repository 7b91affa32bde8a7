"""The ledger of draws: the only truth about what was asked for, what is in flight, and what is too old.

A draw is a position in the endless, shuffled sequence of prompts. Nothing here waits, and nothing here knows Ray.

Draws are settled in their order: by the step of version v, where they are asked for, at least `due` of those in flight,
and by each later step at least `groups_per_step`. With n draws in flight before it a draw is settled in step v where
n < due, and otherwise in step v + 1 + (n - due) // groups_per_step at the latest. That is no later than
v + max_staleness exactly when

    n < due + max_staleness * groups_per_step

which is what `room` leaves. So nothing is ever dropped for its age or its length: a long response is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from engine.shuffle import Shuffle
from workers.stopped import RunStopped


class WrongWeights(RunStopped):
    """Weights sampled that could not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A prompt that is asked for."""

    number: int
    """Its position in the sequence."""
    prompt: int
    version: int
    """Of the weights that every engine serves when it is asked; later ones may write a part of it."""


class Ledger:
    """Which draws are in flight, since which weights, and how many more may be."""

    def __init__(self, shuffle: Shuffle, *, next_draw: int, groups_per_step: int, max_staleness: int) -> None:
        self._shuffle, self._not_asked = shuffle, next_draw
        self._in_flight: dict[int, Draw] = {}
        self._groups_per_step, self._max_staleness = groups_per_step, max_staleness

    @property
    def in_flight(self) -> Mapping[int, Draw]:
        """By number, in the order in which they were asked for."""
        return MappingProxyType(self._in_flight)

    @property
    def oldest(self) -> int:
        """Of those in flight, the first that was asked for."""
        return next(iter(self._in_flight))

    @property
    def next_draw(self) -> int:
        """The first draw that is not settled: a run that goes on from here asks for it, and for all after it."""
        return min(self._in_flight, default=self._not_asked)

    def room(self, *, due: int, later_steps: int) -> int:
        """Draws that may be asked for now. `due`: the fewest that this step still settles; `later_steps`: that the run
        has after this one."""
        ahead = min(self._max_staleness, later_steps) * self._groups_per_step
        return max(0, due + ahead - len(self._in_flight))

    def admit(self, *, version: int) -> Draw:
        """The next draw, in flight from now on."""
        draw = Draw(number=self._not_asked, prompt=self._shuffle.row(self._not_asked), version=version)
        self._in_flight[draw.number] = draw
        self._not_asked += 1
        return draw

    def settle(self, number: int) -> Draw:
        """Out of flight: answered or cut off. Raises KeyError unless it is in flight, so nothing counts twice."""
        return self._in_flight.pop(number)

    def check_weights(self, draw: Draw, *, oldest_version: int, version: int) -> None:
        """Raises WrongWeights unless those that wrote its oldest token were served when the draw was asked for, and are
        not too old for a policy of `version`."""
        if oldest_version < draw.version:
            raise WrongWeights(
                f"draw {draw.number} was asked for when every rollout engine served version {draw.version}, and part "
                f"of it was sampled by version {oldest_version}: an engine did not take the weights that it confirmed"
            )
        if version - oldest_version > self._max_staleness:
            raise WrongWeights(
                f"draw {draw.number} was sampled by version {oldest_version}, and the policy that is to learn from it "
                f"is version {version}: older than rollout.max_staleness={self._max_staleness} allows"
            )
