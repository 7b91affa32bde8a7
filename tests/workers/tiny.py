"""A tiny policy, toy rollouts to learn from, and trainer processes that stay warm between tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.algorithms.base import Outcomes
from workers.lessons import Example, Lesson, Part, Share
from workers.records import Group, Message, Prompt, Rollout, Row, Span, Stop, Totals, Update

if TYPE_CHECKING:
    import torch


ROOT = Path(__file__).resolve().parents[2]
BLANK = ROOT / "examples" / "nano" / "blank"
VOCABULARY = 104
HORIZON = 12
ALL, EACH, ODD = 10**6, 1, 37
"""Tokens of a micro-batch: everything at once, one row at a time, and in between."""


# ----------------------------------------------------------------------------- the policy


def with_exact_norms(model: torch.nn.Module) -> torch.nn.Module:
    """The model with RMS norms in its own precision: transformers computes them in float32, backwards too, and a sum of
    gradients that went through together is then rounded otherwise than one by one."""
    for norm in model.modules():
        if type(norm).__name__.endswith("RMSNorm"):
            norm.forward = lambda hidden, norm=norm: _normed(norm, hidden)
    return model


def _normed(norm: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    is_gemma = type(norm).__name__.startswith("Gemma")
    eps, weight = (norm.eps, 1.0 + norm.weight) if is_gemma else (norm.variance_epsilon, norm.weight)
    return weight * hidden * (hidden.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


def write_policy(folder: Path, *, tied: bool) -> str:
    """A random Qwen2 of two layers as a Hugging Face folder, the tokenizer of examples/nano/blank beside it."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    shutil.copytree(BLANK, folder, dirs_exist_ok=True)
    settings = json.loads((BLANK / "config.json").read_text())
    settings |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "layer_types": None}
    # Five times the usual spread: log-probs then lie well away from those of a uniform guess.
    settings |= {"tie_word_embeddings": tied, "initializer_range": 0.1}
    torch.manual_seed(11)
    AutoModelForCausalLM.from_config(Qwen2Config(**settings), dtype=torch.float32).save_pretrained(folder)
    return str(folder)


def write_reward_model(folder: Path, policy: str) -> str:
    """The policy's network with a head of its own that gives one number, as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(12)
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(folder)
    return str(folder)


def is_reward_model(folder: str) -> bool:
    return "ForSequenceClassification" in (Path(folder) / "config.json").read_text()


def plain_logprobs(
    model: torch.nn.Module, context: Sequence[int], prompt_length: int, temperature: float
) -> torch.Tensor:
    """One row alone through the plain model: the log-probs of its response tokens."""
    import torch

    tokens = torch.tensor(context)
    logits = model(input_ids=tokens[None]).logits[0].float() / temperature
    return torch.stack([logits[at - 1].log_softmax(-1)[tokens[at]] for at in range(prompt_length, len(tokens))])


# ----------------------------------------------------------------------------- what it learns from


def toy_groups(*, num_groups: int = 6, siblings: int = 4, poison: bool = False) -> tuple[Group, ...]:
    """Prompts and responses of many lengths. Sample 1 of each group holds a tool's tokens, sample 3 of group 0 nothing
    but those. `poison` puts NaN where the rollout engine's log-probs must not be read."""
    random = np.random.default_rng(5)
    groups = []
    for draw in range(num_groups):
        prompt_ids = tuple(int(token) for token in random.integers(5, VOCABULARY, 3 + 2 * (draw % 3)))
        prompt = Prompt(
            id=f"toy-{draw}",
            messages=(Message(role="user", content="?"),),
            token_ids=prompt_ids,
            answer="",
            row={},
            from_text=True,
        )
        rollouts = []
        for sample in range(siblings):
            length = int(random.integers(4, HORIZON)) if sample == 1 else int(random.integers(1, HORIZON))
            token_ids = random.integers(5, VOCABULARY, length).astype(np.int32)
            logprobs = random.uniform(-5.0, -0.1, length).astype(np.float32)
            spans = _spans(length, draw=draw, sample=sample)
            rollout = Rollout(
                prompt=prompt, draw=draw, sample=sample, text="", token_ids=token_ids, logprobs=logprobs,
                spans=spans, stop=Stop.LENGTH,
            )  # fmt: skip
            if poison:
                logprobs[~rollout.action_mask()] = np.nan
            rollouts.append(rollout)
        groups.append(Group(rollouts=tuple(rollouts), greedy=None, prompt_text=""))
    return tuple(groups)


def _spans(length: int, *, draw: int, sample: int) -> tuple[Span, ...]:
    if (draw, sample) == (0, 3):
        return (Span(start=0, end=length, sampled=False, version=0),)
    if sample == 1:
        return (
            Span(start=0, end=1, sampled=True, version=0),
            Span(start=1, end=3, sampled=False, version=0),
            Span(start=3, end=length, sampled=True, version=0),
        )
    return (Span(start=0, end=length, sampled=True, version=0),)


def rollout_of(row: Row, groups: Sequence[Group]) -> Rollout:
    return next(group for group in groups if group.draw == row.draw).rollouts[row.sample]


def toy_rows(draws: Sequence[int], *, siblings: int = 4, seed: int = 1) -> tuple[Row, ...]:
    """All responses to these prompts, which make one optimizer step together, with rewards by chance."""
    random, groups = np.random.default_rng([seed, *draws]), toy_groups()
    rows = []
    for draw in draws:
        tokens = sum(int(rollout.action_mask().sum()) for rollout in groups[draw].rollouts[:siblings])
        rows += [
            Row(draw=draw, sample=sample, reward=float(random.normal()), prompt_tokens=tokens)
            for sample in range(siblings)
        ]
    return tuple(rows)


def count(rows: Sequence[Row], groups: Sequence[Group]) -> Totals:
    lengths = [int(rollout_of(row, groups).action_mask().sum()) for row in rows]
    return Totals(
        tokens=sum(lengths),
        sequences=sum(length > 0 for length in lengths),
        prompts=len({row.draw for row in rows}),
        horizon=HORIZON,
    )


def deal(rows: Sequence[Row], groups: Sequence[Group], *, ranks: int) -> list[Update]:
    """One optimizer step, dealt unevenly: of eight rows rank 0 of two gets three."""
    totals = count(rows, groups)
    if ranks == 1:
        return [Update(rows=tuple(rows), totals=totals)]
    share = len(rows) * 3 // 8
    return [Update(rows=tuple(rows[:share]), totals=totals), Update(rows=tuple(rows[share:]), totals=totals)]


def reference_logprob(row: Row, position: int) -> float:
    """A made-up reference policy."""
    return -3.0 - np.sin(1.0 + row.draw + 3.0 * row.sample + 7.0 * position)


def critic_value(row: Row, position: int) -> float:
    """A made-up critic."""
    return 0.5 * np.cos(2.0 + row.draw + 5.0 * row.sample + 3.0 * position)


def return_of(row: Row, position: int) -> float:
    """What a made-up critic should have said."""
    return 0.3 + np.sin(0.5 + 2.0 * row.draw + row.sample + 5.0 * position)


def greedy_score(row: Row) -> float:
    """Of a made-up response without chance to the row's prompt."""
    return 0.25 * row.draw - 0.5


def made_up(
    of: Callable[[Row, int], float], rows: Sequence[Row], groups: Sequence[Group], *, filler: float = 0.0
) -> np.ndarray:
    """[B, T] what one of them says of action tokens; `filler` where nobody may look."""
    masks = [rollout_of(row, groups).action_mask() for row in rows]
    whole_BT = np.full((len(rows), max(map(len, masks))), filler, dtype=np.float32)
    for number, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        for position in np.flatnonzero(mask):
            whole_BT[number, position] = of(row, int(position))
    return whole_BT


def outcomes_of(rows: Sequence[Row], groups: Sequence[Group]) -> Outcomes:
    return Outcomes(
        score_B=np.array([row.reward for row in rows]),
        greedy_B=np.array([greedy_score(row) for row in rows]),
        length_B=np.array([int(rollout_of(row, groups).action_mask().sum()) for row in rows]),
        group_B=np.array([row.draw for row in rows]),
    )


def example_of(row: Row, groups: Sequence[Group], *, part: Part = Part.TEXT) -> Example:
    rollout = rollout_of(row, groups)
    return Example(
        part=part,
        token_ids=(*rollout.prompt.token_ids, *(int(token) for token in rollout.token_ids)),
        prompt_length=len(rollout.prompt.token_ids),
        mask=tuple(bool(trained) for trained in rollout.action_mask()),
    )


def text_of(row: Row, groups: Sequence[Group]) -> Lesson:
    """The response as something to imitate."""
    return Lesson(id=f"{row.draw}-{row.sample}", examples=(example_of(row, groups),), margin=0.0)


def pairs_of(rows: Sequence[Row], groups: Sequence[Group]) -> tuple[Lesson, ...]:
    """Two siblings each: the first is the better one."""
    return tuple(
        Lesson(
            id=f"{better.draw}-{better.sample}",
            examples=(example_of(better, groups, part=Part.CHOSEN), example_of(worse, groups, part=Part.REJECTED)),
            margin=0.25 * better.sample,
        )
        for better, worse in zip(rows[::2], rows[1::2], strict=True)
    )


def judged_of(rows: Sequence[Row], groups: Sequence[Group]) -> tuple[Lesson, ...]:
    """Each answer approved of, with the next row's behind the same prompt."""
    lessons = []
    for row, other in zip(rows, (*rows[1:], rows[0]), strict=True):
        example, stranger = (example_of(which, groups, part=Part.DESIRABLE) for which in (row, other))
        prompt, answer = example.token_ids[: example.prompt_length], stranger.token_ids[stranger.prompt_length :]
        mismatched = replace(stranger, part=Part.MISMATCHED, token_ids=(*prompt, *answer), prompt_length=len(prompt))
        lessons.append(Lesson(id=f"{row.draw}-{row.sample}", examples=(example, mismatched), margin=0.0))
    return tuple(lessons)


def said_by_reference(lessons: Sequence[Lesson]) -> tuple[np.ndarray, ...]:
    """A made-up reference's log-probs, of every sequence."""
    said = []
    for example in (example for lesson in lessons for example in lesson.examples):
        token_T = np.array(example.token_ids[example.prompt_length :], dtype=np.float32)
        said.append(-3.0 - np.sin(token_T + 3.0 * np.arange(len(token_T), dtype=np.float32)))
    return tuple(said)


def share_of(lessons: Sequence[Lesson], *, reference: bool = False) -> Share:
    return Share(lessons=tuple(lessons), reference=said_by_reference(lessons) if reference else ())


def deal_lessons(lessons: Sequence[Lesson], *, ranks: int, reference: bool = False) -> list[Share]:
    """Unevenly: of four lessons rank 0 of two gets one."""
    share = len(lessons) if ranks == 1 else len(lessons) // 4
    parts = [lessons[:share], lessons[share:]][:ranks]
    return [share_of(part, reference=reference) for part in parts]


def totals_of(lessons: Sequence[Lesson]) -> Totals:
    learned = [example for lesson in lessons for example in lesson.examples if example.is_learned_from]
    tokens = sum(sum(example.mask) for example in learned)
    return Totals(tokens=tokens, sequences=len(learned), prompts=len(lessons), horizon=HORIZON)
