"""How good the policy is on prompts that it never trains on: sampled as in training, and greedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray

from engine.config import Config
from engine.metrics import part_means
from engine.rollout_stream import ask
from engine.shown_responses import shown
from workers.records import Group, GroupRequest, GroupSummary, Prompt, Sampling, ScoredRollout
from workers.team import Workers

EVALUATION_STREAM = 0x5EED
"""Keeps held-out randomness apart from the training draws of the same seed."""
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The policy's scores on held-out prompts."""

    sampled: float
    """avg@k: mean score of k samples a prompt, at the training temperature."""
    standard_error: float
    """Of `sampled`, from the spread between prompts; 0 with one prompt."""
    best: float
    """pass@k for 0/1 rewards: mean over prompts of the best sample's score."""
    greedy: float
    prompts: int
    samples: int
    unjudged: int
    parts: Mapping[str, float]
    """Means of a reward's named parts, of samples and (`greedy_...`) of greedy answers; empty where there is one."""
    responses: tuple[ScoredRollout, ...]
    """A few greedy ones, for people."""

    def metrics(self) -> dict[str, float]:
        return {
            "held_out/sampled": self.sampled,
            "held_out/standard_error": self.standard_error,
            "held_out/best": self.best,
            "held_out/greedy": self.greedy,
            **{f"held_out/{name}": value for name, value in self.parts.items()},
        }


def evaluate(prompts: Sequence[Prompt], workers: Workers, config: Config) -> HeldOut:
    """The same samples for the same weights, whenever it is asked."""
    chosen = prompts[: config.evaluation.prompts]
    samples = config.evaluation.samples_per_prompt
    length = config.rollout.max_response_tokens
    random = Sampling(temperature=config.rollout.temperature, max_tokens=length)
    greedy = Sampling(temperature=0.0, max_tokens=length)
    sampled = _ask_all(chosen, workers, config, num_samples=samples, sampling=random)
    best = _ask_all(chosen, workers, config, num_samples=1, sampling=greedy)
    sampled_summaries = _summaries(sampled, workers)
    greedy_summaries = _summaries(best, workers)
    group_scores = [summary.score_G for summary in sampled_summaries]
    groups: list[Group] = ray.get([group for group, _ in best[:SHOWN]])
    return HeldOut(
        sampled=_mean([score for score_G in group_scores for score in score_G]),
        standard_error=standard_error([_mean(score_G) for score_G in group_scores]),
        best=_mean([np.nanmax(score_G) for score_G in group_scores if np.isfinite(score_G).any()]),
        greedy=_mean([score for summary in greedy_summaries for score in summary.score_G]),
        prompts=len(chosen),
        samples=len(chosen) * samples,
        unjudged=sum(len(summary.failures()) for summary in (*sampled_summaries, *greedy_summaries)),
        parts=_parts(sampled_summaries, prefix="") | _parts(greedy_summaries, prefix="greedy_"),
        responses=tuple(
            shown(group, summary, sample=0) for group, summary in zip(groups, greedy_summaries[:SHOWN], strict=True)
        ),
    )


def _parts(summaries: Sequence[GroupSummary], *, prefix: str) -> dict[str, float]:
    means = part_means(summaries)
    return {f"{prefix}{name}": mean for name, mean in means.items()} if len(means) > 1 else {}


def _ask_all(
    prompts: Sequence[Prompt], workers: Workers, config: Config, *, num_samples: int, sampling: Sampling
) -> list[tuple[ray.ObjectRef, ray.ObjectRef]]:
    return [
        ask(
            workers,
            GroupRequest(
                prompt=prompt,
                draw=draw,
                num_samples=num_samples,
                seed=config.run.seed ^ EVALUATION_STREAM,
                sampling=sampling,
                with_greedy=False,
            ),
        )
        for draw, prompt in enumerate(prompts)
    ]


def _summaries(asked: Sequence[tuple[ray.ObjectRef, ray.ObjectRef]], workers: Workers) -> list[GroupSummary]:
    return workers.reward.wait([summary for _, summary in asked], verb="score held-out groups")


def standard_error(means: Sequence[float]) -> float:
    """Of the mean over prompts: samples of one prompt are no independent witnesses."""
    judged = [mean for mean in means if np.isfinite(mean)]
    return float(np.std(judged, ddof=1) / np.sqrt(len(judged))) if len(judged) > 1 else 0.0


def _mean(scores: Sequence[float]) -> float:
    """Over what could be judged; NaN when nothing could."""
    judged = [score for score in scores if np.isfinite(score)]
    return float(np.mean(judged)) if judged else float("nan")
