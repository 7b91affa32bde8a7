"""The best and the worst response of a step, as a person is shown them: a pure function from responses to lines.

Models write anything: every line that holds text of a model begins with a mark, and characters that would move a
terminal's cursor, colour it, reorder a line or not be seen at all are written as escapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.score import Score
from workers.records import Group, GroupSummary, ScoredRollout

MARK = "│ "
MOST_CHARACTERS, MOST_LINES = 1200, 16
"""Of one text; what is left out of its middle is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a response is: its group among those of the step, and its number in it."""

    group: int
    sample: int


def extremes(summaries: Sequence[GroupSummary]) -> tuple[Place, Place] | None:
    """The best and the worst judged response; None where there is none. Of equals the first is the best and the last
    the worst, so that two are shown."""
    places = [
        (float(score), Place(group=group, sample=sample))
        for group, summary in enumerate(summaries)
        for sample, score in enumerate(summary.score_G)
        if np.isfinite(score)
    ]
    if not places:
        return None
    best = max(places, key=lambda scored: scored[0])[1]
    worst = min(reversed(places), key=lambda scored: scored[0])[1]
    return best, worst


def shown(group: Group, summary: GroupSummary, *, sample: int) -> ScoredRollout:
    """One of the group's responses, and what its summary says of it."""
    return ScoredRollout(rollout=group.rollouts[sample], judgement=summary.judgements[sample])


def told(best: ScoredRollout, worst: ScoredRollout, *, step: int) -> tuple[str, ...]:
    """One block of lines."""
    return (*_block("best", best, step), *_block("worst", worst, step))


def _block(name: str, scored: ScoredRollout, step: int) -> Iterator[str]:
    rollout = scored.rollout
    tokens = f"{len(rollout.token_ids)} tokens" + (", cut off" if rollout.stop.value == "length" else "")
    yield f"step {step}, {name} response: {_verdict(scored)} ({visible(rollout.prompt.id)}, {tokens})"
    for message in rollout.prompt.messages:
        yield from _lines(visible(message.role), message.content)
    yield from _lines("response", rollout.text)
    yield from _lines("answer", rollout.prompt.answer)


def _verdict(scored: ScoredRollout) -> str:
    judgement = scored.judgement
    if not isinstance(judgement, Score):
        return f"not judged, {judgement.kind.value}"
    parts = ", ".join(f"{visible(name)} {value:.4g}" for name, value in judgement.parts.items())
    return f"score {judgement.total:.4g}" + (f" = {parts}" if len(judgement.parts) > 1 else "")


def _lines(label: str, text: str) -> Iterator[str]:
    for number, line in enumerate(clipped(text).split("\n")):
        yield f"  {label if number == 0 else '':<9} {MARK}{visible(line)}"


def clipped(text: str) -> str:
    """Its beginning and its end, and what lies between them counted.

    >>> clipped("short")
    'short'
    """
    half = MOST_CHARACTERS // 2
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    lines = text.split("\n")
    half = MOST_LINES // 2
    if len(lines) <= MOST_LINES:
        return text
    return "\n".join([*lines[:half], f"[... {len(lines) - 2 * half} lines left out ...]", *lines[-half:]])


def visible(text: str) -> str:
    r"""Every character that has no picture of its own as an escape.

    >>> visible("12\x1b[31m\r\u202e\ud800 größer")
    '12\\x1b[31m\\r\\u202e\\ud800 größer'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
