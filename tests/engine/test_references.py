"""The reference is asked once about each sequence, and kept for whoever goes on; never for another model's run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.config import Config, load_config
from engine.references import References
from workers.lessons import Example, Lesson, Part


@dataclass
class Policy:
    """Says of each sequence the number of its last token, and remembers that it was asked."""

    asked: list[tuple[int, ...]] = field(default_factory=list)

    def first_logprobs(self, shares: Sequence[Sequence[Lesson]]) -> list[tuple[np.ndarray, ...]]:
        examples = [[example for lesson in share for example in lesson.examples] for share in shares]
        self.asked += [example.token_ids for share in examples for example in share]
        return [
            tuple(np.full(len(example.mask), float(example.token_ids[-1]), np.float32) for example in share)
            for share in examples
        ]


@dataclass
class Team:
    policy: Policy = field(default_factory=Policy)


class Silent:
    def say(self, text: str) -> None:
        """To nobody."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield


def pair(number: int) -> Lesson:
    examples = tuple(
        Example(part=part, token_ids=(1, 2, number, last), prompt_length=2, mask=(True, True))
        for part, last in ((Part.CHOSEN, 3), (Part.REJECTED, 4))
    )
    return Lesson(id=str(number), examples=examples, margin=0.0)


def config_of(folder: Path, *overrides: str) -> Config:
    return load_config(["algo=dpo", "data=arithmetic", f"run.folder={folder}", "run.name=one", *overrides])


def asked_for(lessons: Sequence[Lesson], config: Config, *, ranks: int = 1) -> tuple[References, int]:
    """The references, and how many sequences the policy was asked about."""
    team, references = Team(), References(config)
    references.complete(lessons, team, Silent(), ranks=ranks)
    return references, len(team.policy.asked)


def test_each_sequence_is_asked_about_once_however_often_it_comes(tmp_path: Path) -> None:
    lessons = [pair(7), pair(8), pair(7)]
    references, asked = asked_for(lessons, config_of(tmp_path), ranks=2)
    assert asked == 4
    share = references.share(lessons)
    assert [said.tolist() for said in share.reference] == [[3, 3], [4, 4]] * 3
    assert share.lessons == tuple(lessons)


def test_who_goes_on_asks_only_for_what_is_new(tmp_path: Path) -> None:
    asked_for([pair(7)], config_of(tmp_path))
    references, asked = asked_for([pair(7), pair(8)], config_of(tmp_path))
    assert asked == 2
    assert len(references.share([pair(7), pair(8)]).reference) == 4


def test_what_another_model_said_is_not_taken_for_the_reference(tmp_path: Path) -> None:
    asked_for([pair(7)], config_of(tmp_path))
    for other in (
        ["tuning=lora"],
        ["model.precision=bfloat16"],
        ["model.path=examples/nano/blank", "model.weights=random", "model=nano"],
    ):
        _, asked = asked_for([pair(7)], config_of(tmp_path, *other))
        assert asked == 2
