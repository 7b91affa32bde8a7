"""One judgement from what several judges said of a response: the weighted sum of those that its row asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards.score import LARGEST, Failure, FailureKind, Judgement, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """What one judge said of a response: a function, or a reward model.

    Example:
        Voice(name="format", weight=0.1, abstains=False, said=Score(total=1.0, parts={"tags": 1.0}))
    """

    name: str
    weight: float
    abstains: bool
    """Whether saying None means having no say."""
    said: Judgement | None
    """None where it was not asked."""

    @property
    def is_silent(self) -> bool:
        """Whether the response is judged as if this judge were not there."""
        no_say = isinstance(self.said, Failure) and self.said.kind is FailureKind.UNSCORABLE
        return self.said is None or not self.weight or (self.abstains and no_say)


def mixed(voices: Sequence[Voice]) -> Judgement:
    """What the judges said together.

    A failure of one that counts makes the response a failure, with that judge's reason: left out of the sum it would be
    a zero. Where nobody who counts is left, the response was not judged. A judge without weight is only shown. The
    parts of one judge alone keep their names; among several, one part bears the judge's name, further ones `name/part`.
    A sum beyond `LARGEST`, or one of what is summed, is a failure (NOT_FINITE), as a score beyond it is.
    """
    counted = [voice for voice in voices if not voice.is_silent]
    for voice in counted:
        if isinstance(voice.said, Failure):
            return voice.said
    if not counted:
        names = ", ".join(voice.name for voice in voices)
        return Failure(kind=FailureKind.UNSCORABLE, reason=f"none of {names} judges this row")
    scores = [(voice, voice.said.total) for voice in counted if isinstance(voice.said, Score)]
    weighed = [voice.weight * score for voice, score in scores]
    total = sum(weighed)
    if not all(abs(number) <= LARGEST for number in (*weighed, total)):  # which no NaN is
        told = " + ".join(f"{voice.weight:g} x {score:g} ({voice.name})" for voice, score in scores)
        return Failure(kind=FailureKind.NOT_FINITE, reason=f"{told} goes beyond {LARGEST:g}; set smaller weights")
    parts: dict[str, float] = {}
    for voice in voices:
        if isinstance(voice.said, Score):
            parts |= _named(voice.name, voice.said, alone=len(voices) == 1)
    return Score(total=total, parts=parts)


def _named(name: str, score: Score, *, alone: bool) -> dict[str, float]:
    if alone:
        return dict(score.parts)
    if len(score.parts) == 1:
        return {name: score.total}
    return {name: score.total} | {f"{name}/{part}": value for part, value in score.parts.items()}
