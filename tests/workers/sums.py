"""Sums as lessons, and a process's worth of learning from them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.algorithms.base import LanguageObjective, Objective, ScoreObjective
from engine.algorithms.dpo import DPO
from engine.data.arithmetic import ArithmeticData
from engine.data.base import RowKind, Split
from engine.data.render import LessonMaker, Room, rows_of
from engine.data.template import Template, load_tokenizer
from engine.metrics import of_update
from engine.offline import totals_of
from workers.config import Overlong
from workers.lessons import Lesson, Share
from workers.records import Metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from workers.student_worker import StudentWorker
    from workers.train_worker import RankInfo, TrainerSetup

NANO = Path(__file__).resolve().parents[2] / "examples" / "nano" / "policy"
ANSWER_TOKENS = 6
"""Three digits, the end, and two more that may go wrong."""


# ----------------------------------------------------------------------------- lessons


def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(NANO))


@functools.cache
def lessons_of(data: ArithmeticData, kind: RowKind, split: Split, *, number: int) -> tuple[Lesson, ...]:
    """So many rows, by chance."""
    rows = random.Random(1).sample(rows_of(data, kind, split), number)
    room = Room(tokens=512, told="nano's context", overlong=Overlong.ERROR)
    # Nothing of an objective but what it imitates of conversations matters to a maker, and these are none.
    make = LessonMaker(DPO(), Template(tokenizer()), room)
    return tuple(lesson for row in rows for lesson in make(row))


# ----------------------------------------------------------------------------- learning


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a model learns, in which steps, and what it is asked afterwards."""

    objective: Objective
    batches: tuple[tuple[Lesson, ...], ...]
    held_out: tuple[Lesson, ...]
    """Preferences."""
    export: str
    """A folder for the model; empty: none is written."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of it."""

    first: Metrics
    last: Metrics
    """Of its steps."""
    held_out: Metrics
    divergence: float
    """Of what it answers from what it answered before: KL(now || before) of whole answers, in nats; 0 for a judge."""


def study(rank: RankInfo, setup: TrainerSetup, course: Course) -> Report:
    """Runs in a trainer process: a fresh model takes the course."""
    from workers.policy_worker import PolicyWorker
    from workers.reward_model_worker import RewardModelWorker

    objective, judges = course.objective, isinstance(course.objective, ScoreObjective)
    worker = (RewardModelWorker if judges else PolicyWorker)(setup, rank)
    batches = [objective.assemble(batch) for batch in course.batches]
    # KTO has no measure of its own for pairs: its rewards are those of DPO.
    measure = DPO(beta=objective.beta) if objective.rows is RowKind.JUDGED else objective
    shared = _with_reference(worker, [*batches, course.held_out], objective)
    steps = [
        of_update([worker.fit(shared(batch), totals_of(batch, horizon=ANSWER_TOKENS), objective)]) for batch in batches
    ]
    totals = totals_of(course.held_out, horizon=ANSWER_TOKENS)
    held_out = of_update([worker.assess(shared(course.held_out), totals, measure)])
    if course.export:
        worker.export(Path(course.export))
        tokenizer().save_pretrained(course.export)
    divergence = 0.0 if judges else _divergence(worker._model, setup, course.held_out)
    return Report(first=steps[0], last=steps[-1], held_out=held_out, divergence=divergence)


def _with_reference(
    worker: StudentWorker, batches: Sequence[Sequence[Lesson]], objective: Objective
) -> Callable[[Sequence[Lesson]], Share]:
    """Lessons as a share, with what the model says of them before it learns anything, where the objective asks."""
    if not (isinstance(objective, LanguageObjective) and objective.needs.reference):
        return lambda lessons: Share(lessons=tuple(lessons), reference=())
    examples = list({example: None for batch in batches for lesson in batch for example in lesson.examples})
    alone = tuple(Lesson(id="", examples=(example,), margin=0.0) for example in examples)
    said = dict(zip(examples, worker.first_logprobs(alone), strict=True))
    return lambda lessons: Share(
        lessons=tuple(lessons),
        reference=tuple(said[example] for lesson in lessons for example in lesson.examples),
    )


def _divergence(policy: PreTrainedModel, setup: TrainerSetup, held_out: Sequence[Lesson]) -> float:
    """Exact at every token, along answers that the policy samples."""
    import torch

    from workers.model import load_language_model

    reference = load_language_model(setup.model, seed=setup.seed)
    generator = torch.Generator().manual_seed(0)
    examples = [lesson.examples[0] for lesson in held_out]
    rows = [list(example.token_ids[: example.prompt_length]) for example in examples]
    summed, going = torch.zeros(len(rows)), torch.ones(len(rows), dtype=torch.bool)
    # It has learned from packed rows, and is asked about padded ones.
    policy.set_attn_implementation("sdpa")
    for _ in range(ANSWER_TOKENS):
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        ends = torch.tensor([len(row) - 1 for row in rows])
        with torch.no_grad():
            said = [
                model(padded).logits[torch.arange(len(rows)), ends].log_softmax(-1) for model in (policy, reference)
            ]
        summed += ((said[0].exp() * (said[0] - said[1])).sum(-1)).where(going, 0.0)
        drawn = torch.multinomial(said[0].exp(), 1, generator=generator).squeeze(1)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            row.append(token)
        going &= drawn != tokenizer().eos_token_id
    return float(summed.mean())
