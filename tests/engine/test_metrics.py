"""A step's figures: what could not be judged is in none of them, and a NaN is never passed over."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from engine.metrics import of_rollouts, of_update
from engine.rollout_stream import Taken, TakenGroup
from rewards.score import Failure, FailureKind, Judgement, Score
from workers.records import GreedyOutcome, GroupSummary
from workers.tally import UpdateReport

NAN = float("nan")


def judged(score: float, parts: Mapping[str, float]) -> Judgement:
    return Failure(kind=FailureKind.TIMEOUT, reason="") if math.isnan(score) else Score(total=score, parts=parts)


def group(
    scores: list[float],
    *,
    lengths: list[int],
    parts: Mapping[str, float] | None = None,
    prompt_length: int = 5,
    versions: Mapping[int, int] | None = None,
    **fields: object,
) -> TakenGroup:
    settings = {"truncated_G": np.zeros(len(scores), dtype=bool), "greedy": None, "judging_s": 0.5}
    settings |= {"repetition_G": np.zeros(len(scores)), "digest_G": np.arange(len(scores)), "answer_digest": 0}
    settings |= fields
    summary = GroupSummary(
        draw=0, prompt_id="p", judgements=tuple(judged(score, parts or {}) for score in scores),
        tokens_by_version=versions or {0: sum(lengths)}, length_G=np.array(lengths),
        action_tokens_G=np.array(lengths), prompt_length=prompt_length, **settings,
    )  # fmt: skip
    return TakenGroup(summary=summary, group=None)


def figures(
    *groups: TakenGroup,
    dropped: dict[str, int] | None = None,
    drawn: int = 0,
    carried: int = 0,
    failures: tuple[Failure, ...] = (),
    version: int = 0,
    cut_tokens: int = 0,
) -> dict[str, float]:
    taken = Taken(
        version=version, groups=groups, dropped=Counter(dropped or {}), drawn=drawn, carried=carried,
        cut_tokens=cut_tokens, passed_over=(), failures=failures,
    )  # fmt: skip
    return of_rollouts(taken)


def report(contributions: dict[str, float], maxima: dict[str, float], *, skipped: int = 0) -> UpdateReport:
    return UpdateReport(contributions=contributions, maxima=maxima, action_tokens=0, skipped_updates=skipped)


def test_the_mean_and_spread_are_those_of_the_judged_responses_alone() -> None:
    seen = figures(group([1.0, NAN, 0.0], lengths=[1, 1, 1]), group([0.5, NAN], lengths=[1, 1]))
    assert seen["reward/mean"] == pytest.approx(0.5)
    assert seen["reward/std"] == pytest.approx(math.sqrt(0.5 / 3))
    assert seen["reward/unjudged_share"] == pytest.approx(2 / 5)
    assert seen["reward/judging_s"] == 1.0


def test_staleness_is_counted_in_tokens() -> None:
    one = group([1.0, 0.0], lengths=[6, 4], versions={5: 6, 6: 4})
    seen = figures(one, group([1.0], lengths=[30], versions={7: 30}), version=7, cut_tokens=12)
    assert seen["staleness/mean"] == pytest.approx((2 * 6 + 1 * 4 + 0 * 30) / 40)
    assert seen["staleness/max"] == 2 and seen["staleness/mixed_share"] == 1 / 2
    assert seen["groups/cut_off_tokens"] == 12


def test_a_group_without_any_judgement_is_neither_uniform_nor_not() -> None:
    uniform, mixed, unjudged = [1.0, 1.0], [1.0, 0.0], [NAN, NAN]
    seen = figures(*[group(scores, lengths=[1, 1]) for scores in (uniform, mixed, unjudged)])
    assert seen["reward/uniform_groups_share"] == pytest.approx(1 / 2)


def test_lengths_and_tokens_count_every_response_judged_or_not() -> None:
    seen = figures(
        group([1.0, NAN], lengths=[2, 6], prompt_length=10, truncated_G=np.array([False, True])),
        group([0.0], lengths=[1], prompt_length=3),
    )
    assert seen["response_length/mean"] == pytest.approx(3.0) and seen["response_length/max"] == 6
    assert seen["response_length/truncated_share"] == pytest.approx(1 / 3)
    assert seen["tokens"] == 2 + 6 + 1 + 2 * 10 + 3


def test_parts_and_reasons_for_dropping_are_reported_by_name() -> None:
    seen = figures(
        group([1.0], lengths=[1], parts={"correct": 1.0, "format": 0.2}),
        group([0.0], lengths=[1], parts={"correct": 0.5}),
        dropped={"too easy": 3},
    )
    assert seen["reward/correct"] == pytest.approx(0.75)
    assert seen["reward/format"] == pytest.approx(0.2)
    assert seen["dropped_groups/too easy"] == 3


def test_how_many_groups_were_drawn_for_those_that_are_learned_from() -> None:
    own = [group([1.0, 0.0], lengths=[1, 1])] * 3
    seen = figures(*own, dropped={"all_right": 5, "all_wrong": 2}, drawn=9, carried=1)
    assert {name: value for name, value in seen.items() if "groups/" in name} == {
        "groups/drawn": 9.0, "groups/carried": 1.0, "groups/kept": 3.0, "groups/cut_off_tokens": 0.0,
        "dropped_groups/all_right": 5.0, "dropped_groups/all_wrong": 2.0,
    }  # fmt: skip


def test_greedy_responses_are_counted_and_are_in_no_mean() -> None:
    greedy = GreedyOutcome(score=5.0, action_tokens=3, truncated=False)
    seen = figures(group([1.0, 0.0], lengths=[1, 1], greedy=greedy), group([0.5], lengths=[1]))
    assert seen["reward/greedy_responses"] == 1.0
    assert seen["reward/mean"] == pytest.approx(0.5) and seen["response_length/mean"] == 1.0


def test_failures_are_counted_by_kind() -> None:
    kinds = (FailureKind.TIMEOUT, FailureKind.CRASH, FailureKind.TIMEOUT)
    seen = figures(group([1.0], lengths=[1]), failures=tuple(Failure(kind=kind, reason="") for kind in kinds))
    assert {name: value for name, value in seen.items() if "failures" in name} == {
        "reward_failures/crash": 1.0, "reward_failures/timeout": 2.0,
    }  # fmt: skip


def texts(scores: list[float], digests: list[int], *, answer: int) -> TakenGroup:
    return group(scores, lengths=[1] * len(scores), digest_G=np.array(digests), answer_digest=answer)


@pytest.mark.parametrize(
    ("groups", "share"),
    [
        ([texts([1, 0], [7, 8], answer=7), texts([1, 0], [9, 7], answer=9)], 0.0),  # honest: 7 is wrong for 9
        ([texts([1, 1], [7, 7], answer=7), texts([1, 0], [7, 7], answer=9)], 1.0),  # 7 pays under both
        ([texts([1, 1], [7, 7], answer=7), texts([1, 0], [7, 7], answer=7)], 0.0),  # and should
        ([texts([1, 1], [7, 1], answer=7), texts([1, 1], [7, 2], answer=9)], 0.5),  # everything pays
        ([texts([0, 0], [7, 7], answer=7), texts([0, 0], [7, 7], answer=9)], 0.0),  # nothing does
        ([texts([1, NAN], [7, 7], answer=7), texts([0, NAN], [7, 7], answer=9)], 0.0),  # who was not judged is not paid
    ],
)
def test_the_share_of_rewarded_texts_that_pay_under_another_answer_too(groups: list[TakenGroup], share: float) -> None:
    assert figures(*groups)["response/repeated_across_prompts"] == pytest.approx(share)


def test_repetition_is_the_mean_over_all_responses() -> None:
    seen = figures(
        group([1.0, 0.0], lengths=[1, 1], repetition_G=np.array([0.5, 0.1])),
        group([0.0], lengths=[1], repetition_G=np.array([0.0])),
    )
    assert seen["response/repetition"] == pytest.approx(0.2)


def test_contributions_add_up_over_ranks_and_the_largest_maximum_counts() -> None:
    seen = of_update(
        [
            report({"loss": 0.25, "gradient_norm": 2.0}, {"logprob_gap_max": 0.1}, skipped=1),
            report({"loss": -1.0}, {"logprob_gap_max": 0.3, "ratio_deviation": 0.01}, skipped=1),
        ]
    )
    assert seen == {
        "loss": -0.75, "gradient_norm": 2.0, "logprob_gap_max": 0.3, "ratio_deviation": 0.01, "skipped_updates": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_of_any_rank_is_the_steps_figure(place: int) -> None:
    values = [0.1, 0.2, 0.3]
    values[place] = NAN
    seen = of_update([report({"loss": value}, {"logprob_gap_max": value}) for value in values])
    assert math.isnan(seen["logprob_gap_max"]) and math.isnan(seen["loss"])


# ----------------------------------------------------------------------------- figures that are no means


def means_of(values: dict[str, np.ndarray], *, ranks: int) -> list[UpdateReport]:
    """As trainers report them: each token's share of the mean over all tokens, added up by rank."""
    tokens = len(next(iter(values.values())))
    parts = [np.arange(tokens)[rank::ranks] for rank in range(ranks)]
    return [report({name: float(value[own].sum() / tokens) for name, value in values.items()}, {}) for own in parts]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_explained_variance_is_what_numpy_says_of_all_tokens(ranks: int) -> None:
    generator = np.random.default_rng(4)
    returns = generator.normal(loc=3.0, size=200)
    expected = returns + generator.normal(scale=0.5, size=200)
    surprise = returns - expected
    means = {"return": returns, "surprise": surprise}
    means |= {f"{name}_squared": value**2 for name, value in means.items()}
    seen = of_update(means_of(means, ranks=ranks))
    assert seen["explained_variance"] == pytest.approx(1 - np.var(surprise) / np.var(returns))
    assert 0.5 < seen["explained_variance"] < 0.95


def test_a_constant_return_has_no_variance_to_explain() -> None:
    constant = {"return": 2.0, "return_squared": 4.0, "surprise": 1.0, "surprise_squared": 1.5}
    assert of_update([report(constant, {})])["explained_variance"] == 0.0


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_effective_sample_size_is_a_share_of_the_tokens(ranks: int) -> None:
    def share_of(weights: list[float]) -> float:
        weight = np.array(weights)
        means = {"correction_weight": weight, "correction_weight_squared": weight**2}
        return of_update(means_of(means, ranks=ranks))["correction_ess"]

    assert share_of([1.0] * 8) == pytest.approx(1.0)
    assert share_of([2.0, 0.0, 0.0, 0.0]) == pytest.approx(1 / 4)  # one token speaks for all
    assert share_of([1.0, 2.0, 3.0]) == pytest.approx(6**2 / (3 * 14))
    assert share_of([0.0, 0.0]) == 0.0


def test_runs_without_a_correction_or_a_critic_have_no_such_figures() -> None:
    assert of_update([report({"loss": 1.0}, {})]).keys() == {"loss", "skipped_updates"}
