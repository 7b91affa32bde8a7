"""KTO: golden numbers, the reference point, and whose answer stands beside whose prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lesson_rows import each_alone, figures, golden_judged, gradient, loss_of
from loss_rows import assert_near

from engine.algorithms.kto import KTO
from engine.algorithms.settings import InvalidSetting
from engine.data.base import DataError
from engine.metrics import of_update
from workers.lessons import Example, Lesson, Part
from workers.tally import Tally

KL_POLICY, KL_REFERENCE = (-9.0, -17.0, -22.0), (-9.6, -17.3, -22.1)


def mean_ratio(policy: Sequence[float], reference: Sequence[float]) -> float:
    return sum(own - other for own, other in zip(policy, reference, strict=True)) / len(policy)


def test_golden_losses() -> None:
    point = mean_ratio(KL_POLICY, KL_REFERENCE)
    assert point == pytest.approx(1 / 3)
    assert_near(each_alone(KTO(), golden_judged(), point=point), [0.48334, 0.466716, 0.495833])
    rows = golden_judged()
    told = figures(loss_of(KTO(), rows, rows.totals(), point=point))
    assert told["value"] == pytest.approx(0.481963, abs=2e-6)
    assert told["reference_point"] == pytest.approx(1 / 3)


def test_a_reference_point_below_zero_is_zero() -> None:
    """Pitfall 25."""
    point = mean_ratio(KL_REFERENCE, KL_POLICY)
    golden = [0.475021, 0.712531, 0.487503]
    assert_near(each_alone(KTO(undesirable_weight=1.5), golden_judged(), point=point), golden)
    rows = golden_judged()
    assert figures(loss_of(KTO(), rows, rows.totals(), point=point))["reference_point"] == 0


def test_a_policy_that_is_its_reference_loses_half_of_every_weight() -> None:
    rows = replace(golden_judged(), reference_BT=golden_judged().logprobs_BT)
    loss = loss_of(KTO(desirable_weight=2.0, undesirable_weight=3.0), rows, rows.totals())
    assert loss.value.item() == pytest.approx((2 * 0.5 + 1 * 0.5 * 3 + 2 * 0.5) / 3)


def test_approval_pulls_up_and_disapproval_down() -> None:
    pull_BT = gradient(lambda own: loss_of(KTO(), own, own.totals()).value, golden_judged())
    assert (pull_BT[[0, 2]] <= 0).all() and (pull_BT[1] >= 0).all() and (pull_BT != 0).sum() == 4 + 5 + 3


def test_an_answer_far_below_the_reference_point_teaches_little() -> None:
    """The value function is flat at its ends: a hopeless or noisy label is let be."""
    pull_BT = gradient(lambda own: loss_of(KTO(beta=1.0), own, own.totals(), point=50.0).value, golden_judged())
    assert pull_BT[[0, 2]].abs().max() < 1e-15


def test_rewards_are_averaged_over_their_own_kind() -> None:
    tally, rows = Tally(num_updates=1), golden_judged()
    for part in ([0], [1, 2]):
        tally.add_loss(loss_of(KTO(), rows.at(part), rows.totals(), point=0.2))
    told = of_update([tally.report()])
    assert told["rewards/desirable"] == pytest.approx(0.1 * (1.0 + 0.5) / 2)
    assert told["rewards/undesirable"] == pytest.approx(0.1 * -1.0)
    assert told["accuracy"] == 1.0


# ----------------------------------------------------------------------------- mismatched answers


def lesson(number: int, *, prompt: int, answer: int) -> Lesson:
    tokens = (*[100 + number] * prompt, *range(1, answer + 1))
    example = Example(part=Part.DESIRABLE, token_ids=tokens, prompt_length=prompt, mask=(True,) * answer)
    return Lesson(id=f"row-{number}", examples=(example,), margin=0.0)


def test_each_prompt_gets_the_answer_of_the_lesson_before_it() -> None:
    """Pitfall 25: going round, not in reverse, which would put the middle one beside itself."""
    rows = [lesson(0, prompt=2, answer=3), lesson(1, prompt=3, answer=2), lesson(2, prompt=1, answer=4)]
    own, other = zip(*(assembled.examples for assembled in KTO().assemble(rows)), strict=True)
    assert list(own) == [row.examples[0] for row in rows]
    assert [example.token_ids for example in other] == [
        (100, 100, 1, 2, 3),  # the last one's answer of four, cut to the longest sequence of five tokens
        (101, 101, 101, 1, 2),  # of three, cut
        (102, 1, 2),
    ]
    assert [example.mask for example in other] == [(True,) * 3, (True,) * 2, (True,) * 2]
    assert all(example.part is Part.MISMATCHED and not example.is_learned_from for example in other)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=8))
def test_every_mismatched_sequence_has_an_answer_and_fits(sizes: list[tuple[int, int]]) -> None:
    rows = [lesson(number, prompt=prompt, answer=answer) for number, (prompt, answer) in enumerate(sizes)]
    longest = max(len(row.examples[0].token_ids) for row in rows)
    for assembled, row in zip(KTO().assemble(rows), rows, strict=True):
        own, other = assembled.examples
        assert other.token_ids[: other.prompt_length] == own.token_ids[: own.prompt_length]
        assert len(other.mask) == len(other.token_ids) - other.prompt_length >= 1
        assert len(other.token_ids) <= longest and other.mask[0]
        assert assembled.id == row.id and assembled.trained_tokens == row.trained_tokens


def test_one_lesson_has_nobody_to_be_compared_with() -> None:
    with pytest.raises(DataError, match=r"row-0.*stands alone"):
        KTO().assemble([lesson(0, prompt=1, answer=1)])
    assert KTO().assemble([]) == []


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="beta is -1"):
        KTO(beta=-1.0)
    with pytest.raises(InvalidSetting, match="undesirable_weight is"):
        KTO(undesirable_weight=math.nan)
