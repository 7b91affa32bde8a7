"""Figures of a step, from what many workers saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engine.rollout_stream import Taken
from workers.records import GroupSummary, Metrics

if TYPE_CHECKING:
    from workers.tally import UpdateReport

NOT_PARTS = frozenset(
    f"reward/{name}"
    for name in ("mean", "std", "greedy_responses", "judging_s", "unjudged_share", "uniform_groups_share")
)
"""Metrics of the reward as a whole; every other one that begins like them is a named part of it."""


def of_rollouts(taken: Taken) -> Metrics:
    """What the policy wrote this step, and how it was judged."""
    summaries = [item.summary for item in taken.groups]
    group_scores = [summary.score_G for summary in summaries]
    scores = np.concatenate(group_scores)
    lengths = np.concatenate([summary.length_G for summary in summaries])
    judged = scores[np.isfinite(scores)]
    group_spreads = [np.nanstd(score_G) for score_G in group_scores if np.isfinite(score_G).any()]
    prompt_tokens = sum(summary.prompt_length * len(summary.length_G) for summary in summaries)
    return {
        "reward/mean": float(judged.mean()),
        "reward/std": float(judged.std()),
        "reward/greedy_responses": float(sum(summary.greedy is not None for summary in summaries)),
        "reward/judging_s": float(sum(summary.judging_s for summary in summaries)),
        "reward/unjudged_share": 1.0 - len(judged) / len(scores),
        "reward/uniform_groups_share": float(np.mean([spread == 0 for spread in group_spreads])),
        **{f"reward/{name}": mean for name, mean in part_means(summaries).items()},
        "response_length/mean": float(lengths.mean()),
        "response_length/max": float(lengths.max()),
        "response_length/truncated_share": float(np.mean(np.concatenate([s.truncated_G for s in summaries]))),
        "response/repetition": float(np.mean(np.concatenate([s.repetition_G for s in summaries]))),
        "response/repeated_across_prompts": repeated_across_prompts(summaries),
        "tokens": float(lengths.sum() + prompt_tokens),
        **staleness(summaries, version=taken.version),
        "groups/drawn": float(taken.drawn),
        "groups/carried": float(taken.carried),
        "groups/kept": float(len(taken.groups)),
        "groups/cut_off_tokens": float(taken.cut_tokens),
        **{f"dropped_groups/{reason}": float(count) for reason, count in taken.dropped.items()},
        **{
            f"reward_failures/{kind}": float(count)
            for kind, count in sorted(Counter(failure.kind.value for failure in taken.failures).items())
        },
    }


def staleness(summaries: Sequence[GroupSummary], *, version: int) -> Metrics:
    """By how many versions the weights that sampled are behind the policy that learns, over tokens; and the share of
    groups that several versions wrote."""
    tokens: Counter[int] = Counter()
    for summary in summaries:
        tokens.update(summary.tokens_by_version)
    return {
        "staleness/mean": sum((version - own) * count for own, count in tokens.items()) / tokens.total(),
        "staleness/max": float(version - min(tokens)),
        "staleness/mixed_share": float(np.mean([len(summary.tokens_by_version) > 1 for summary in summaries])),
    }


def part_means(summaries: Sequence[GroupSummary]) -> dict[str, float]:
    """Of each named part of the reward, over the groups that have it: every group counts once."""
    means = [summary.part_means() for summary in summaries]
    names = sorted({name for own in means for name in own})
    return {name: float(np.mean([own[name] for own in means if name in own])) for name in names}


def repeated_across_prompts(summaries: Sequence[GroupSummary]) -> float:
    """Of the rewarded responses, the share whose text is also rewarded under a prompt with another answer; 0 without
    any.

    Rewarded is what scores above the step's mean, or the same as all where that is above 0.
    """
    scores = np.concatenate([summary.score_G for summary in summaries])
    mean = np.nanmean(scores)
    with np.errstate(invalid="ignore"):
        rewarded = (scores > mean) | ((scores >= mean - 1e-9) & (scores > 0))
    digests = np.concatenate([summary.digest_G for summary in summaries])[rewarded]
    sizes = [len(summary.length_G) for summary in summaries]
    answers = np.repeat([summary.answer_digest for summary in summaries], sizes)[rewarded]
    under: dict[int, set[int]] = {}
    for digest, answer in zip(digests.tolist(), answers.tolist(), strict=True):
        under.setdefault(digest, set()).add(answer)
    shared = sum(len(under[digest]) > 1 for digest in digests.tolist())
    return shared / len(digests) if len(digests) else 0.0


def of_update(reports: Sequence[UpdateReport]) -> Metrics:
    """One figure for all ranks: contributions add up, the largest maximum counts."""
    names = {name for report in reports for name in report.contributions}
    maxima = {name for report in reports for name in report.maxima}
    # max() would pass over a NaN that is not the first.
    sums = {name: sum(report.contributions.get(name, 0.0) for report in reports) for name in sorted(names)}
    return {
        **sums,
        **_derived(sums),
        **{name: float(np.max([report.maxima.get(name, 0.0) for report in reports])) for name in sorted(maxima)},
        "skipped_updates": float(max(report.skipped_updates for report in reports)),
    }


def _derived(means: Metrics) -> Metrics:
    """Figures that are no means themselves, from means over the action tokens of the step."""
    derived = {}
    if "correction_weight_squared" in means:
        # Share of the tokens that would say as much with equal weights (Kish's effective sample size).
        squared = means["correction_weight_squared"]
        derived["correction_ess"] = means["correction_weight"] ** 2 / squared if squared else 0.0
    if "return_squared" in means:
        of_returns = means["return_squared"] - means["return"] ** 2
        unexplained = means["surprise_squared"] - means["surprise"] ** 2
        derived["explained_variance"] = 1.0 - unexplained / of_returns if of_returns > 0 else 0.0
    if "desirable_share" in means:
        # Rewards are summed over one part of the lessons, and divided by the number of all.
        shares = {"desirable": means["desirable_share"], "undesirable": 1.0 - means["desirable_share"]}
        for part, share in shares.items():
            if share > 0:
                derived[f"rewards/{part}"] = means[f"summed_rewards/{part}"] / share
    return derived
